package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/guest/wire"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// runSpec is what a machine was started with that its VM's record may no longer
// say. It is kept with the run in the ledger.
type runSpec struct {
	CPUs    int
	Memory  int64 // bytes
	Started time.Time
	Engine  string // the driver's name; empty where an earlier version, which had QEMU alone, did not note it
	Why     string // it was chosen
	Agent   string // build of the agent; empty where an earlier version did not note it
	Console int64  // bytes that the console file had then
}

// differs names what the next start will bring: what the record asks for, and the agent
// that this daemon has.
func (r runSpec) differs(rec Record, agent string) []string {
	var names []string
	if r.CPUs != rec.CPUs {
		names = append(names, "cpus")
	}
	if r.Memory != rec.Memory {
		names = append(names, "memory")
	}
	if rec.VMM != api.VMMAuto && string(rec.VMM) != r.engine() {
		names = append(names, "vmm")
	}
	if r.Agent != agent {
		names = append(names, "agent")
	}
	return names
}

// engine is the name of the driver that started it.
func (r runSpec) engine() string { return cmp.Or(r.Engine, string(api.VMMQEMU)) }

// diskNames are the names in the ledger of the disks of a VM; empty where it has none.
type diskNames struct {
	dir, root, work string
	base            string // of the root: the file below the state directory that it is a snapshot of
}

func (s *Service) diskNames(ctx context.Context, id string) (diskNames, error) {
	held, err := s.ledger.Held(ctx, ownerOf(id))
	var names diskNames
	for _, ref := range held {
		switch ref.Kind {
		case KindDir:
			names.dir = ref.Name
		case disk.KindUpper, disk.KindCow:
			names.root = ref.Name
			var spec disk.Spec
			if err := json.Unmarshal(ref.Spec, &spec); err != nil {
				return names, fmt.Errorf("read what disk %s is: %w", ref.Name, err)
			}
			names.base = spec.Base
		case disk.KindWork:
			names.work = ref.Name
		}
	}
	return names, err
}

// acquireDisks makes what a VM is to hold for its life and does not hold yet. What
// it made is given back when it does not succeed.
func (s *Service) acquireDisks(ctx context.Context, rec Record, report api.Reporter) (err error) {
	r := s.rootOf(rec)
	if err := r.check(ctx, rec); err != nil {
		return err
	}
	// What could not be given back until now may stand in the way.
	if err := s.ledger.Finish(ctx, ownerOf(rec.ID)); err != nil {
		return err
	}
	names, err := s.diskNames(ctx, rec.ID)
	if err != nil {
		return err
	}
	var made []resource.Ref
	defer func() {
		for i := len(made) - 1; i >= 0 && err != nil; i-- {
			if rerr := s.ledger.Release(context.WithoutCancel(ctx), made[i]); rerr != nil {
				err = errors.Join(err, rerr)
				return
			}
		}
	}()
	dir := "vms/" + rec.ID
	for _, want := range []struct {
		kind, has, name string
		spec            func() (any, error)
		needed          bool
	}{
		{KindDir, names.dir, dir, func() (any, error) { return nil, nil }, true},
		{r.files().Kind(), names.root, r.files().Name(dir), func() (any, error) { return r.spec(ctx, rec, report) }, true},
		{disk.KindWork, names.work, s.works.Name(dir), func() (any, error) { return disk.Spec{Size: rec.DiskSize}, nil }, rec.DiskSize > 0},
	} {
		if !want.needed {
			continue
		}
		if want.has != "" {
			if err := s.whole(want.kind, want.has, rec); err != nil {
				return err
			}
			continue
		}
		spec, err := want.spec()
		if err != nil {
			return err
		}
		ref, err := s.ledger.Acquire(ctx, ownerOf(rec.ID), want.kind, want.name, spec)
		if err != nil {
			return err
		}
		made = append(made, ref)
	}
	return nil
}

// whole sees to it that what a VM holds by the word of the ledger is there, and that
// its disks have the sizes of its record, from which a crash may have kept them.
func (s *Service) whole(kind, name string, rec Record) error {
	disks, size := s.works, rec.DiskSize
	advice := "put the file back from a backup, or delete the VM"
	switch kind {
	case KindDir:
		return os.MkdirAll(filepath.Join(s.stateDir, filepath.FromSlash(name)), 0o700)
	case disk.KindUpper, disk.KindCow:
		r := s.rootOf(rec)
		disks, size, advice = r.files(), r.fileSize(rec.RootSize), "banger vm reset "+rec.Name+" gives it a fresh root"
	}
	path, err := disks.Path(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.CodeUnavailable, "open %s disk: %w", kind, err).WithHint("%s", advice)
	}
	if err == nil && info.Size() < size {
		_, err = disks.Grow(name, size)
	}
	return err
}

// frame is what there is of a machine without what it is made of: enough to find one
// that runs.
func (s *Service) frame(rec Record, runDir, cgroup string) vmm.Machine {
	return vmm.Machine{
		ID: rec.ID, UID: rec.UID, CPUs: rec.CPUs, Memory: rec.Memory,
		Console: s.consolePath(rec.ID), Log: filepath.Join(s.vmDir(rec.ID), "vmm.log"),
		RunDir: s.runDirs.Path(runDir), Cgroup: s.cgroups.Path(cgroup),
	}
}

// machine describes the machine of a VM whose resources owner has.
func (s *Service) machine(ctx context.Context, owner string, rec Record, r bootRoot, runDir, cgroup string) (vmm.Machine, error) {
	boot, err := s.assets.Boot(ctx, rec.Kernel)
	if err != nil {
		return vmm.Machine{}, err
	}
	d := &description{machine: s.frame(rec, runDir, cgroup), boot: wire.Boot{Sync: rec.Sync}}
	d.machine.Kernel, d.machine.Initrd = boot.Vmlinux, boot.Initramfs
	if err := r.describe(ctx, owner, rec, d); err != nil {
		return vmm.Machine{}, err
	}
	d.boot.Modules = d.disk(boot.Modules, true)
	for _, c := range s.capabilities {
		if err := c.describe(ctx, owner, rec, d); err != nil {
			return vmm.Machine{}, err
		}
	}
	d.machine.Cmdline = d.boot.Cmdline()
	return d.machine, nil
}

// releaseDisk gives back the disks of one kind that a VM holds.
func (s *Service) releaseDisk(ctx context.Context, id, kind string) error {
	held, err := s.ledger.Held(ctx, ownerOf(id))
	if err != nil {
		return err
	}
	for _, ref := range held {
		if ref.Kind == kind {
			err = errors.Join(err, s.ledger.Release(ctx, ref))
		}
	}
	return err
}
