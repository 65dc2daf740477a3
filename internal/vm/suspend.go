package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/space"
	"banger/internal/vmm"
)

// KindSuspended is the kind of a suspended VM's snapshot: a directory. It is held from
// before it is written until the VM has gone on from it, or is to go on no more.
const KindSuspended = "suspended"

// SuspendedDir is the directory, below the state directory, of all snapshots. The name of
// each begins with the id of its VM.
const SuspendedDir = "suspended"

// Suspend has a VM stand still on the disk: its memory is written there, and its VMM
// ends.
func (s *Service) Suspend(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.suspend", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.do(ctx, evSuspend, 0, report)
	})
}

// ColdStart is Start that boots a suspended VM too, and drops what it was at.
func (s *Service) ColdStart(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.start", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.submit(&command{ctx: ctx, event: evStart, cold: true, report: report})
	})
}

// suspend writes what the machine is to the disk and ends it. Before the record says that
// the VM is suspended everything is undone where something goes wrong, and the machine
// goes on as before; then it returns l.
func (s *Service) suspend(ctx context.Context, o *owner, rec Record, l *live, report api.Reporter) (_ *live, err error) {
	was := l.isPaused()
	defer func() {
		err = api.About(err, "suspend VM %q", rec.Name)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = api.Errorf(api.CodeNoSpace, "%w", err).WithHint("%s", space.Hint)
		}
	}()
	err = s.snapshot(ctx, rec, l, report)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		suspended := rec
		suspended.Wanted, suspended.LastError = WantSuspended, ""
		err = o.commit(ctx, suspended)
	}
	if err != nil {
		err = errors.Join(cmp.Or(ctx.Err(), err), s.dropSnapshots(rec.ID))
		if !was {
			err = errors.Join(err, api.About(l.resume(context.WithoutCancel(ctx)), "have it go on"))
		}
		return l, err
	}
	failpoint.Reach("vm", "suspended")
	return nil, s.releaseRun(rec)
}

// snapshot makes the snapshot of a VM's machine, which stands still after that.
func (s *Service) snapshot(ctx context.Context, rec Record, l *live, report api.Reporter) error {
	report(api.Progress{Step: "pause"})
	if err := l.pause(ctx); err != nil {
		return err
	}
	err := s.dropSnapshots(rec.ID) // of an attempt that could not be undone
	if err == nil {
		err = s.ledger.Finish(ctx, ownerOf(rec.ID))
	}
	if err != nil {
		return err
	}
	if err := s.room.Admit(fmt.Sprintf("suspend VM %q", rec.Name), snapshotSize(l)); err != nil {
		return err
	}
	engine, err := s.engines.Choose(ctx, api.VMM(l.spec.engine()))
	if err != nil {
		return err
	}
	name := SuspendedDir + "/" + rec.ID + "-" + resource.RandomName(4)
	if _, err := s.ledger.Acquire(ctx, ownerOf(rec.ID), KindSuspended, name, l.spec); err != nil {
		return err
	}
	report(api.Progress{Step: "write memory"})
	dir := s.dirs.Path(name)
	if err := l.inst.Snapshot(ctx, dir); err != nil {
		return err
	}
	if err := failpoint.Pass("vm", "snapshot.written"); err != nil {
		return err
	}
	for _, d := range l.disks { // memory may know of nothing that a crash of the host undoes
		if !d.ReadOnly {
			if err := linux.SyncFile(d.Path); err != nil {
				return err
			}
		}
	}
	m, err := s.machine(ctx, runOwnerOf(rec.ID), l.spec.of(rec), s.rootOf(rec), "", "")
	if err != nil {
		return err
	}
	of, err := vmm.Describe(engine, m)
	if err == nil {
		err = of.Seal(dir)
	}
	if err != nil {
		return err
	}
	return failpoint.Pass("vm", "snapshot.sealed")
}

// of is what the machine was made of that was started with r, of a VM that may have
// become something else since.
func (r runSpec) of(rec Record) Record {
	rec.CPUs, rec.Memory, rec.VMM = r.CPUs, r.Memory, api.VMM(r.engine())
	return rec
}

// snapshotSize is how much the snapshot of a machine takes at most, in bytes: what its
// process has in memory, which is more than what its guest uses.
func snapshotSize(l *live) int64 {
	size := l.spec.Memory + l.spec.Memory/64
	if _, memory, err := linux.ProcessUsage(l.inst.PID()); err == nil {
		size = min(size, memory)
	}
	return size + 16<<20
}

// suspended finds the snapshot of a VM in the ledger.
func (s *Service) suspended(ctx context.Context, id string) (ref resource.Ref, spec runSpec, err error) {
	held, err := s.ledger.Held(ctx, ownerOf(id))
	if err != nil {
		return ref, spec, err
	}
	for _, r := range held {
		if r.Kind != KindSuspended {
			continue
		}
		presence, err := s.ledger.Inspect(ctx, r)
		if err == nil && presence != resource.Ours {
			err = errors.New("its directory is missing")
		}
		if err == nil {
			err = json.Unmarshal(r.Spec, &spec)
		}
		return r, spec, err
	}
	return ref, spec, errors.New("there is none")
}

// dropSnapshots gives back the snapshot that a VM holds, if any.
func (s *Service) dropSnapshots(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return s.releaseDisk(ctx, id, KindSuspended)
}

// end gives back what a VM holds while it runs or is suspended.
func (s *Service) end(rec Record) error {
	if err := s.releaseRun(rec); err != nil {
		return err
	}
	return s.dropSnapshots(rec.ID)
}

// wakeHint is the way out for who cannot wake a VM.
func wakeHint(rec Record) string {
	return fmt.Sprintf("banger vm start --cold %s boots it, as after a power failure: what was in its memory is lost", rec.Name)
}

// wake has a suspended VM go on. Until the record says that it runs, whatever goes wrong
// leaves it suspended; from then on nobody may go on from the snapshot again, since the
// machine writes to its disks.
func (s *Service) wake(ctx context.Context, o *owner, rec Record, watch *stopwatch, report api.Reporter) (*live, error) {
	ref, spec, err := s.suspended(ctx, rec.ID)
	var of vmm.Snapshot
	if err == nil {
		of, err = vmm.OpenSnapshot(s.dirs.Path(ref.Name))
	}
	if err != nil {
		return nil, api.Errorf(api.CodeConflict, "its snapshot cannot be used: %w", err).WithHint("%s", wakeHint(rec))
	}
	settled, err := s.settle(ctx, rec)
	if err == nil && settled != rec {
		rec, err = settled, o.commit(ctx, settled)
	}
	if err != nil {
		return nil, err
	}
	spec.Console = s.consoleSize(rec.ID)
	m, engine, err := s.acquireRun(ctx, runOwnerOf(rec.ID), spec.of(rec), s.rootOf(rec), &spec, watch)
	if err != nil {
		return nil, err
	}
	now, err := vmm.Describe(engine, m)
	if err != nil {
		return nil, err
	}
	if err := of.Fits(now); err != nil {
		return nil, api.Errorf(api.CodeConflict, "its snapshot does not fit any more: %w", err).WithHint("%s", wakeHint(rec))
	}
	report(api.Progress{Step: "read memory"})
	inst, err := engine.Restore(ctx, m, s.dirs.Path(ref.Name))
	if err != nil {
		if api.CodeOf(err) != api.CodeInternal && ctx.Err() == nil {
			err = api.Errorf(api.CodeOf(err), "%w", err).WithHint("%s", wakeHint(rec))
		}
		return nil, err
	}
	watch.lap("restore")
	s.keepHandles(ctx, rec, inst)
	err = failpoint.Pass("vm", "restored")
	if err == nil {
		awake := rec
		awake.Wanted, awake.LastError = WantRunning, ""
		if err = o.commit(ctx, awake); err == nil {
			rec = awake
		}
	}
	if err == nil {
		failpoint.Reach("vm", "awake")
		err = inst.Resume(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, inst.Close())
	}
	b := booted{inst: inst, engine: engine.String(), spec: spec, disks: m.Disks, cgroup: m.Cgroup}
	dropped := make(chan error, 1) // while the guest is waited for
	go func() { dropped <- s.dropSnapshots(rec.ID) }()
	if b.conn, _, err = s.connectWithin(ctx, wakePatience, inst, rec); err != nil { // it is not ended for that: nobody could have its memory again
		s.log.Warn("a VM that was suspended runs, and its agent does not answer", "vm", rec.Name, "err", err)
	}
	watch.lap("agent")
	b.steps = watch.steps
	if err := <-dropped; err != nil {
		s.log.Error("remove the snapshot of a VM that runs", "vm", rec.Name, "err", err) // tried again before the next one
	}
	return s.newLive(b, rec), nil
}

// wakePatience is how long the agent of a VM that goes on may take to answer.
const wakePatience = 30 * time.Second
