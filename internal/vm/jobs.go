package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/guest"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// The kinds of resources that a VM holds beside its disks: its directory for its
// life, the others while it runs.
const (
	KindDir    = "dir"
	KindRunDir = "run-dir"
	KindCgroup = "cgroup"
)

// ownerOf and runOwnerOf are the owners in the ledger of what a VM holds for its
// life, and of what it holds while it runs.
func ownerOf(id string) string    { return "vm/" + id }
func runOwnerOf(id string) string { return "vm/" + id + "/run" }

func (s *Service) vmDir(id string) string { return filepath.Join(s.stateDir, "vms", id) }

// start acquires what a VM needs, boots it and waits for its agent. One that is suspended
// goes on instead, unless cold is asked for. On an error everything that it acquired is
// given back.
func (s *Service) start(ctx context.Context, o *owner, rec Record, cold bool, report api.Reporter) (l *live, err error) {
	report(api.Progress{Step: "prepare"})
	defer func() {
		if err != nil {
			err = cmp.Or(ctx.Err(), err) // what a cancelled start met is not why it ended
			err = fmt.Errorf("start VM %q: %w", rec.Name, errors.Join(err, s.releaseRun(rec)))
		}
	}()
	watch := newStopwatch()
	if err := s.releaseRun(rec); err != nil { // what the last run could not: a VMM of it could write to the disks
		return nil, err
	}
	if rec.Wanted == WantSuspended && !cold {
		return s.wake(ctx, o, rec, watch, report)
	}
	if rec.Wanted == WantSuspended {
		rec.Wanted = WantStopped
		if err := o.commit(ctx, rec); err != nil {
			return nil, err
		}
	}
	if err := s.dropSnapshots(rec.ID); err != nil {
		return nil, err
	}
	if err := s.acquireDisks(ctx, rec, report); err != nil {
		return nil, err
	}
	s.keepRecord(rec)
	watch.lap("disk")
	settled, err := s.settle(ctx, rec)
	if err == nil && settled != rec {
		rec, err = settled, o.commit(ctx, settled)
	}
	if err != nil {
		return nil, err
	}
	b, err := s.bootAgain(ctx, rec, watch, report)
	if err != nil {
		return nil, err
	}
	return s.newLive(b, rec), nil
}

// booted is a machine whose agent has answered.
type booted struct {
	inst   vmm.Instance
	engine string
	spec   runSpec
	disks  []vmm.Disk
	cgroup string
	conn   *guest.Conn // nil: the channel is to be made
	steps  []api.Step

	adopted bool // an earlier daemon started it
	paused  bool // it is to be
}

// acquireRun acquires what a run needs of a VM that has its disks, on behalf of an owner
// in the ledger, who is to give it back, also after an error, and describes the machine.
func (s *Service) acquireRun(ctx context.Context, owner string, rec Record, r bootRoot, spec *runSpec, watch *stopwatch) (vmm.Machine, vmm.Engine, error) {
	fail := func(err error) (vmm.Machine, vmm.Engine, error) { return vmm.Machine{}, vmm.Engine{}, err }
	engine, err := s.engines.Choose(ctx, rec.VMM)
	if err != nil {
		return fail(err)
	}
	spec.Engine, spec.Why = engine.Name(), engine.Why
	watch.lap("engine") // slow the first time
	runDir, cgroup := "vm/"+resource.RandomName(4), s.cgroups.Name(resource.RandomName(4))
	if _, err := s.ledger.Acquire(ctx, owner, KindRunDir, runDir, spec); err != nil {
		return fail(err)
	}
	if err := r.acquire(ctx, owner, rec); err != nil {
		return fail(err)
	}
	watch.lap("root")
	for _, c := range s.capabilities {
		if err := c.acquire(ctx, owner, rec); err != nil {
			return fail(err)
		}
		watch.lap(c.step())
	}
	if _, err := s.ledger.Acquire(ctx, owner, KindCgroup, cgroup, s.limits(rec, engine.Info)); err != nil {
		return fail(err)
	}
	watch.lap("cgroup")
	m, err := s.machine(ctx, owner, rec, r, runDir, cgroup)
	return m, engine, err
}

// stillTimeout is how long an emulated guest may stand still before it is started anew. A
// kernel measures its timer by a clock that runs on while the host has its CPU wait, and
// stands still for ever where that was at the wrong moment: calibrate_APIC_clock in Linux.
const stillTimeout = 30 * time.Second

var errStill = errors.New("the guest stands still")

// bootAgain boots a VM that has its disks, once more if it stands still.
func (s *Service) bootAgain(ctx context.Context, rec Record, watch *stopwatch, report api.Reporter) (booted, error) {
	b, err := s.boot(ctx, runOwnerOf(rec.ID), rec, s.rootOf(rec), watch, stillTimeout, report)
	if !errors.Is(err, errStill) {
		return b, err
	}
	s.log.Warn("a guest stands still; it is started anew", "vm", rec.Name, "after", stillTimeout)
	if err := s.releaseRun(rec); err != nil {
		return booted{}, err
	}
	watch.steps = nil
	watch.lap("still")
	report(api.Progress{Step: "boot once more, the guest stood still"})
	return s.boot(ctx, runOwnerOf(rec.ID), rec, s.rootOf(rec), watch, 0, report)
}

// boot starts the machine of a VM that has its disks, on behalf of an owner in the
// ledger, who is to give back what it acquired, also after an error. That is errStill
// where an emulated guest says nothing for a time, unless that is 0.
func (s *Service) boot(ctx context.Context, owner string, rec Record, r bootRoot, watch *stopwatch, still time.Duration, report api.Reporter) (booted, error) {
	spec := runSpec{CPUs: rec.CPUs, Memory: rec.Memory, Started: time.Now(), Agent: s.agent, Console: s.consoleSize(rec.ID)}
	m, engine, err := s.acquireRun(ctx, owner, rec, r, &spec, watch)
	if err != nil {
		return booted{}, err
	}
	report(api.Progress{Step: "boot"})
	inst, err := engine.Start(ctx, m)
	if err != nil {
		return booted{}, err
	}
	watch.lap("process")
	if owner == runOwnerOf(rec.ID) {
		s.keepHandles(ctx, rec, inst)
	}
	if err := failpoint.Pass("vm", "started"); err != nil {
		return booted{}, errors.Join(err, inst.Close())
	}
	patience := r.patience()
	if still > 0 && engine.Info.Accel == "tcg" {
		patience = still
	}
	hoping, giveUp := context.WithCancel(ctx)
	defer giveUp()
	go func() {
		defer giveUp()
		s.awaitGivingUp(hoping, rec.ID, spec.Console)
	}()
	conn, greeting, err := s.connectWithin(hoping, patience, inst, rec)
	if patience == still && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return booted{}, errors.Join(errStill, inst.Close())
	}
	if err != nil {
		return booted{}, errors.Join(s.bootError(rec, inst, spec, m.Cgroup, err), inst.Close())
	}
	watch.lap("kernel")
	failpoint.Reach("vm", "connected")
	watch.split("agent", greeting.Uptime-greeting.Started)
	return booted{
		inst: inst, engine: engine.String(), spec: spec, disks: m.Disks, cgroup: m.Cgroup,
		conn: conn, steps: watch.steps,
	}, nil
}

// bootError says why the agent did not answer, with what the console said last.
func (s *Service) bootError(rec Record, inst vmm.Instance, spec runSpec, cgroup string, err error) error {
	select {
	case <-inst.Exited():
		err = fmt.Errorf("the VMM ended during the boot: %s", cmp.Or(vmm.OutOfMemory(cgroup), oneLine(inst.Exit().Log)))
	default:
	}
	console := s.consoleTail(rec.ID, spec.Console)
	if reason, ok := agentSaid(console); ok {
		err = fmt.Errorf("the agent gave up: %q", reason)
	} else if console != "" {
		err = fmt.Errorf("%w; the console ended with: %q", err, console[max(0, len(console)-300):])
	}
	return api.Errorf(api.CodeGuest, "boot: %w", err).WithHint("banger vm logs %s shows the whole console", rec.Name)
}

// oneLine is what a VMM said, for an error.
func oneLine(log string) string { return strings.Join(strings.Split(log, "\n"), "; ") }

// stop asks the guest to power off, then presses the power button, then kills. When
// it is cancelled before that, it returns what still runs: l. One that stands still goes
// on for that.
func (s *Service) stop(ctx context.Context, rec Record, l *live, timeout time.Duration) (*live, error) {
	if l != nil && timeout > 0 {
		cancelled := ctx.Done()
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if l.isPaused() {
			if err := l.resume(ctx); err != nil {
				s.log.Info("have a paused VM go on", "vm", rec.Name, "err", err)
			}
		}
		asked := errors.New("no channel")
		if conn := l.connection(); conn != nil {
			asked = conn.PowerOff(ctx)
		}
		if asked != nil {
			s.log.Info("agent did not take the power-off; pressing the button", "vm", rec.Name, "err", asked)
			if err := l.inst.PowerButton(ctx); err != nil {
				s.log.Info("power button", "vm", rec.Name, "err", err)
			}
		}
		select {
		case <-l.inst.Exited():
		case <-ctx.Done():
			select {
			case <-cancelled:
				return l, fmt.Errorf("stop VM %q: %w", rec.Name, context.Canceled)
			default:
			}
			s.log.Warn("guest did not power off; killing it", "vm", rec.Name)
		}
	}
	return nil, api.About(s.end(rec), "stop VM %q", rec.Name)
}

// destroy kills a VM, gives back all that it holds and forgets it.
func (s *Service) destroy(ctx context.Context, rec Record, _ *live) error {
	ctx = context.WithoutCancel(ctx) // half a deletion serves nobody
	rec.Wanted = WantDeleted
	if err := s.store.UpdateVM(ctx, rec); err != nil {
		s.log.Warn("record deletion", "vm", rec.Name, "err", err) // a full disk must not forbid it
	}
	s.keepRecord(rec)
	if err := s.releaseRun(rec, ownerOf(rec.ID)); err != nil {
		return fmt.Errorf("delete VM %q: %w", rec.Name, err)
	}
	return api.About(s.store.DeleteVM(ctx, rec.ID), "delete VM %q", rec.Name)
}

// releaseRun gives back what a VM holds while it runs, its VMM first of all, then what the
// next owners hold.
func (s *Service) releaseRun(rec Record, next ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	owner := runOwnerOf(rec.ID)
	err := s.ledger.ReleaseOwner(ctx, owner, next...)
	if err != nil && (len(next) == 0 || s.ledger.ReleaseOwner(ctx, owner) != nil) {
		return err // what is still there stays under its rules
	}
	return errors.Join(err, s.dropHandles(rec.ID), s.released(ctx, owner))
}

// adopt takes up the VMM of a VM that an earlier run of the daemon started. Only that
// there is no VMM is an error: one that lives is not given up because something is
// missing that a start would need.
func (s *Service) adopt(ctx context.Context, rec Record) (*live, error) {
	held, err := s.ledger.Held(ctx, runOwnerOf(rec.ID))
	if err != nil {
		return nil, err
	}
	var runDir, cgroup string
	var spec runSpec
	for _, ref := range held {
		switch ref.Kind {
		case KindRunDir:
			runDir = ref.Name
			if err := json.Unmarshal(ref.Spec, &spec); err != nil {
				return nil, fmt.Errorf("read what the VM was started with: %w", err)
			}
		case KindCgroup:
			cgroup = ref.Name
		}
	}
	if runDir == "" || cgroup == "" {
		return nil, errors.New("no VMM was started")
	}
	driver, err := s.engines.Named(spec.engine())
	if err != nil {
		return nil, err
	}
	engine := driver.Name()
	if info, err := driver.Check(ctx); err == nil {
		engine = vmm.Engine{Driver: driver, Info: info}.String()
	}
	for _, c := range s.capabilities {
		if err := c.adopt(ctx, runOwnerOf(rec.ID), rec); err != nil {
			s.log.Error("take up what a VM has", "vm", rec.Name, "err", err) // it lives all the same
		}
	}
	m, err := s.machine(ctx, runOwnerOf(rec.ID), rec, s.rootOf(rec), runDir, cgroup)
	if err != nil {
		s.log.Error("describe a VM that runs", "vm", rec.Name, "err", err)
		m = s.frame(rec, runDir, cgroup)
	}
	inst, err := driver.Attach(ctx, m)
	if err != nil {
		return nil, err
	}
	return s.newLive(booted{
		inst: inst, engine: engine, spec: spec, disks: m.Disks, cgroup: m.Cgroup, adopted: true, paused: rec.Wanted == WantPaused,
	}, rec), nil
}
