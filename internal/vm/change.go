package vm

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// Set changes what a VM is. Sizes and NAT change at once, CPUs and memory at the
// next start; api.VM.Pending tells.
func (s *Service) Set(_ context.Context, caller uint32, ref string, req api.SetVM) (api.Operation, error) {
	return s.operate(caller, ref, "vm.set", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.alter(ctx, func(ctx context.Context, rec Record, l *live, _ api.Reporter) (Record, error) {
			to, err := s.set(ctx, o, rec, l, req)
			return to, api.About(err, "change VM %q", rec.Name)
		}, report)
	})
}

func (s *Service) set(ctx context.Context, o *owner, rec Record, l *live, req api.SetVM) (Record, error) {
	to := rec
	to.Name, to.CPUs, to.NAT = or(req.Name, rec.Name), or(req.CPUs, rec.CPUs), or(req.NAT, rec.NAT)
	to.IO, to.VMM = or(req.IO, rec.IO), or(req.VMM, rec.VMM)
	to.Memory = roundDown(or(req.Memory, rec.Memory))
	root, work := roundUp(or(req.RootSize, rec.RootSize)), roundUp(or(req.DiskSize, rec.DiskSize))
	if req.Kernel != nil && *req.Kernel != rec.Kernel {
		if l != nil || rec.Wanted == WantSuspended { // it needs what it was booted with
			return rec, api.Errorf(api.CodeConflict, "change VM %q: its kernel is in use", rec.Name).WithHint("banger vm stop %s", rec.Name)
		}
		if *req.Kernel == "" {
			return rec, api.Errorf(api.CodeInvalid, "change VM %q: the name of the kernel is empty", rec.Name).WithHint("banger kernel list")
		}
		var err error
		if to.Kernel, err = s.assets.Kernel(ctx, *req.Kernel); err != nil {
			return rec, err
		}
	}
	total, err := linux.MemTotal()
	if err != nil {
		return rec, err
	}
	if err := validate(fmt.Sprintf("change VM %q", rec.Name), api.CreateVM{
		Name: to.Name, CPUs: to.CPUs, Memory: to.Memory, RootDisk: to.RootDisk, RootSize: root, DiskSize: &work, Network: to.Network, IO: &to.IO, VMM: to.VMM,
	}, total); err != nil {
		return rec, err
	}
	for _, d := range []struct {
		what     string
		has, get int64
	}{{"root", rec.RootSize, root}, {"work disk", rec.DiskSize, work}} {
		if d.get < d.has {
			return rec, api.Errorf(api.CodeInvalid, "change VM %q: its %s has %d MiB and cannot shrink to %d MiB: what it holds could be cut off",
				rec.Name, d.what, d.has>>20, d.get>>20).WithHint("make a new VM with a smaller one and copy what you need")
		}
	}
	if l != nil && l.isPaused() || rec.Wanted == WantSuspended {
		if root != rec.RootSize || work != rec.DiskSize {
			return rec, stillFor("change VM %q: its disks cannot grow", rec)
		}
	}
	if more := disk.Overhead(root-rec.RootSize) + disk.Overhead(work-rec.DiskSize); more > 0 {
		if err := s.room.Admit(fmt.Sprintf("change VM %q", rec.Name), more); err != nil {
			return rec, err
		}
	}
	if to.NAT != rec.NAT && rec.Network == api.NetworkNone {
		return rec, api.Errorf(api.CodeConflict, "change VM %q: it is not on the network, so there is no NAT to change", rec.Name)
	}
	names, err := s.diskNames(ctx, rec.ID)
	if err != nil {
		return rec, err
	}
	if to.IO != rec.IO {
		if err := s.limitIO(to, l); err != nil {
			return rec, err
		}
	}
	// What follows is done step by step; the record tells how far it came.
	if to.Name != rec.Name {
		if err := o.commit(ctx, to); err != nil { // the name may be taken
			return rec, err
		}
	}
	for _, c := range s.capabilities {
		if err := c.change(ctx, runOwnerOf(rec.ID), to); err != nil {
			to.NAT = rec.NAT
			return to, err
		}
	}
	grown, err := s.grow(ctx, o, &to, names, root, work, l != nil)
	if err != nil {
		return to, err
	}
	if l == nil {
		return to, nil // the agent sees to the file systems and the name at the next start
	}
	if err := l.resize(ctx, grown); err != nil {
		return to, fmt.Errorf("change VM %q: its guest will see the new size at its next start: %w", rec.Name, err)
	}
	if to.Name != rec.Name {
		if conn := l.connection(); conn != nil && !l.isPaused() { // else it hears of it when it goes on
			_, err := conn.Configure(ctx, wire.Configure{Hostname: to.Name})
			return to, err
		}
	}
	return to, nil
}

// grow gives a VM's disks their new sizes, in bytes, and the record with them. It
// returns the disks of a machine that runs that have become larger.
func (s *Service) grow(ctx context.Context, o *owner, to *Record, names diskNames, rootSize, workSize int64, runs bool) (grown []string, err error) {
	if had := to.RootSize; had != rootSize {
		to.RootSize = rootSize
		if names.root != "" { // else it will be made with its size at the next start
			path, err := s.growRoot(ctx, o, *to, names.root, runs)
			if err != nil {
				to.RootSize = had
				return nil, err
			}
			grown = append(grown, path)
		}
	}
	if had := to.DiskSize; had != workSize {
		to.DiskSize = workSize
		if names.work != "" {
			path, err := s.growFile(ctx, o, *to, s.works, names.work, workSize)
			if err != nil {
				to.DiskSize = had
				return grown, err
			}
			grown = append(grown, path)
		}
	}
	return grown, nil
}

// growFile has a disk's file grow, after the record that asks for it is durable: the
// next start makes a file larger, never smaller.
func (s *Service) growFile(ctx context.Context, o *owner, to Record, disks *disk.Disks, name string, size int64) (path string, err error) {
	if err := o.commit(ctx, to); err != nil {
		return "", err
	}
	return disks.Grow(name, size)
}

// growRoot returns what the machine has for its root.
func (s *Service) growRoot(ctx context.Context, o *owner, to Record, name string, runs bool) (path string, err error) {
	r := s.rootOf(to)
	if path, err = s.growFile(ctx, o, to, r.files(), name, r.fileSize(to.RootSize)); err != nil || !runs {
		return path, err
	}
	return r.grow(ctx, runOwnerOf(to.ID), to, path)
}

// stillFor is the error of what cannot be done to a VM that is paused or suspended.
func stillFor(what string, rec Record) error {
	way := "resume"
	if rec.Wanted == WantSuspended {
		way = "start"
	}
	return api.Errorf(api.CodeConflict, what+" while it is %s", rec.Name, rec.Wanted).WithHint("banger vm %s %s", way, rec.Name)
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// Restart stops a VM, if it runs, and starts it.
func (s *Service) Restart(_ context.Context, caller uint32, ref string, timeout time.Duration) (api.Operation, error) {
	return s.operate(caller, ref, "vm.restart", func(ctx context.Context, o *owner, report api.Reporter) error {
		if o.view().State != api.VMStopped {
			report(api.Progress{Step: "stop"})
			if err := o.do(ctx, evStop, cmp.Or(timeout, DefaultStopTimeout), report); err != nil {
				return err
			}
		}
		return o.do(ctx, evStart, 0, report)
	})
}

// Reset gives a VM a fresh root, as at its creation; its work disk stays. One that
// runs is stopped for it and started again.
func (s *Service) Reset(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.reset", func(ctx context.Context, o *owner, report api.Reporter) error {
		was := o.view().State
		if was != api.VMStopped {
			report(api.Progress{Step: "stop"})
			if err := o.do(ctx, evStop, DefaultStopTimeout, report); err != nil {
				return err
			}
		}
		if err := o.alter(ctx, s.resetRoot, report); err != nil || was == api.VMStopped {
			return err
		}
		return o.do(ctx, evStart, 0, report)
	})
}

// resetRoot drops what the root's file has; the next start makes a new one.
func (s *Service) resetRoot(ctx context.Context, rec Record, l *live, _ api.Reporter) (Record, error) {
	if l != nil || rec.Wanted == WantSuspended {
		return rec, api.Errorf(api.CodeConflict, "reset VM %q: it was started meanwhile", rec.Name).WithHint("banger vm reset %s", rec.Name)
	}
	return rec, s.releaseDisk(ctx, rec.ID, s.rootOf(rec).files().Kind())
}

// Promote makes an image, of which the caller is the owner, of a stopped VM's root.
func (s *Service) Promote(_ context.Context, caller uint32, ref, image string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.promote", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.alter(ctx, func(ctx context.Context, rec Record, l *live, report api.Reporter) (Record, error) {
			if rec.Wanted == WantSuspended {
				return rec, stillFor("promote VM %q: its root cannot be read", rec)
			}
			if l != nil {
				return rec, api.Errorf(api.CodeConflict, "promote VM %q: it runs", rec.Name).WithHint("banger vm stop %s", rec.Name)
			}
			if err := s.assets.ImageFree(ctx, caller, image); err != nil { // soon, not after a boot
				return rec, err
			}
			return rec, s.promote(ctx, rec, caller, image, report)
		}, report)
	})
}
