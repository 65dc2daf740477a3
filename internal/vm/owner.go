package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"banger/api"
)

// command is a request to an owner. Its context cancels the job that it becomes.
type command struct {
	ctx     context.Context
	event   event
	timeout time.Duration // evStop: what the guest is given; 0 kills at once
	cold    bool          // evStart: boots one that is suspended
	reason  string        // evStop: why, for LastError; may be empty
	change  change        // evChange
	report  api.Reporter
	done    chan error // buffered; answered once
}

// change makes a VM something else: it returns the record as it is to be, also
// beside an error that left it changed in part. Live is nil while the VM is stopped.
type change func(ctx context.Context, rec Record, l *live, report api.Reporter) (Record, error)

// job is slow work under way for an owner.
type job struct {
	cmd    *command
	cancel context.CancelFunc
	done   chan struct{} // closed at its end; live and err are valid then
	live   *live         // what runs for the VM, after a start and a stop
	err    error
}

// owner is the one goroutine that changes a VM, with the job that it has under way.
// What others may read is behind mu.
type owner struct {
	svc     *Service
	id      string
	uid     uint32 // whose VM it is
	created time.Time
	cmds    chan *command // those that wait for a change under way
	ends    chan *command // those that cancel what is under way: stop, kill, delete --force
	quit    chan struct{} // closed at shutdown
	gone    chan struct{} // closed when the goroutine has ended

	console *console
	unsaved bool // rec is not what the store has

	mu    sync.Mutex
	rec   Record
	state api.VMState
	live  *live // non-nil while a VMM runs for it
	lease lease
}

func newOwner(svc *Service, rec Record) *owner {
	return &owner{
		svc: svc, id: rec.ID, uid: rec.Owner, created: rec.Created, rec: rec, state: api.VMStopped,
		cmds: make(chan *command), ends: make(chan *command), quit: make(chan struct{}), gone: make(chan struct{}),
		console: &console{path: svc.consolePath(rec.ID)},
	}
}

// do hands a command to the owner and waits for its end.
func (o *owner) do(ctx context.Context, ev event, timeout time.Duration, report api.Reporter) error {
	return o.submit(&command{ctx: ctx, event: ev, timeout: timeout, report: report})
}

// alter has the VM changed.
func (o *owner) alter(ctx context.Context, fn change, report api.Reporter) error {
	return o.submit(&command{ctx: ctx, event: evChange, change: fn, report: report})
}

func (o *owner) submit(cmd *command) error {
	cmd.done = make(chan error, 1)
	if cmd.report == nil {
		cmd.report = func(api.Progress) {}
	}
	cmds := o.cmds
	if cmd.event == evStop || cmd.event == evKill || cmd.event == evDestroy {
		cmds = o.ends
	}
	select {
	case cmds <- cmd:
		return <-cmd.done
	case <-o.gone:
		select {
		case <-o.quit:
			return api.Errorf(api.CodeUnavailable, "%s VM %q: the daemon is shutting down", cmd.event, o.name())
		default:
			return notFound(o.name())
		}
	case <-cmd.ctx.Done():
		return cmd.ctx.Err()
	}
}

// name is what the VM is called now.
func (o *owner) name() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rec.Name
}

// run is the owner's loop. It ends when the VM is gone or the daemon shuts down;
// a job under way is then cancelled, and a running VMM is let go.
func (o *owner) run() {
	defer close(o.gone)
	var current *job
	var queued *command // a stop, kill or delete --force that waits for the cancelled job
	tick := time.NewTicker(consoleTick)
	defer tick.Stop()
	for {
		var jobDone, exited <-chan struct{}
		cmds := o.cmds
		if current != nil {
			jobDone = current.done
			if rules[current.cmd.event].to == "" { // its state says nothing of the job
				cmds = nil
			}
		} else if o.live != nil {
			exited = o.live.inst.Exited()
		}
		select {
		case cmd := <-cmds:
			current, queued = o.accept(cmd, current, queued)
		case cmd := <-o.ends:
			current, queued = o.accept(cmd, current, queued)
		case <-jobDone:
			finished := current
			current = nil
			if o.finish(finished, queued != nil) {
				return
			}
			if queued != nil {
				current, queued = o.begin(queued), nil
			}
		case <-exited:
			o.logExit()
			o.transit(evDied)
			current = o.begin(&command{ctx: context.Background(), event: evDied, report: func(api.Progress) {}, done: make(chan error, 1)})
		case <-tick.C:
			if err := o.console.trim(consoleMax, consoleKeep); err != nil && !errors.Is(err, fs.ErrNotExist) {
				o.svc.log.Warn("trim console", "vm", o.name(), "err", err)
			}
		case <-o.quit:
			if current != nil {
				current.cancel()
				<-current.done
				o.finish(current, false)
			}
			if queued != nil {
				queued.done <- api.Errorf(api.CodeUnavailable, "%s VM %q: the daemon is shutting down", queued.event, o.name())
			}
			if o.live != nil {
				o.live.close()
			}
			return
		}
	}
}

// accept takes a command: it becomes the current job, waits for the current one to
// be cancelled (in place of one that did so until now), or is refused.
func (o *owner) accept(cmd *command, current *job, queued *command) (*job, *command) {
	if err := o.transit(cmd.event); err != nil {
		cmd.done <- err
		return current, queued
	}
	if queued != nil {
		queued.done <- o.superseded(queued.event)
	}
	if current != nil {
		current.cancel()
		return current, cmd
	}
	return o.begin(cmd), nil
}

// transit applies an event to the state.
func (o *owner) transit(ev event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	to, err := next(o.state, ev)
	if err != nil {
		e := *api.AsError(err)
		e.Message = fmt.Sprintf("VM %q: %s", o.rec.Name, e.Message)
		return &e
	}
	o.state = to
	return nil
}

// begin starts the job of a command whose event has been applied.
func (o *owner) begin(cmd *command) *job {
	if cmd.event == evStop || cmd.event == evKill {
		o.record(WantStopped, cmd.reason) // should the daemon end before it is done
	}
	ctx, cancel := context.WithCancel(cmd.ctx)
	j := &job{cmd: cmd, cancel: cancel, done: make(chan struct{})}
	rec, was := o.rec, o.live
	go func() {
		defer close(j.done)
		defer cancel()
		switch cmd.event {
		case evStart:
			j.live, j.err = o.svc.start(ctx, o, rec, cmd.cold, cmd.report)
		case evStop:
			j.live, j.err = o.svc.stop(ctx, rec, was, cmd.timeout)
		case evKill, evDied:
			j.err = api.About(o.svc.end(rec), "end VM %q", rec.Name)
		case evPause:
			j.err = api.About(was.pause(ctx), "pause VM %q", rec.Name)
		case evResume:
			j.err = api.About(was.resume(ctx), "resume VM %q", rec.Name)
		case evSuspend:
			j.live, j.err = o.svc.suspend(ctx, o, rec, was, cmd.report)
		case evDelete, evDestroy:
			j.err = o.svc.destroy(ctx, rec, was)
		case evChange:
			var to Record
			if to, j.err = cmd.change(ctx, rec, was, cmd.report); to != o.rec {
				j.err = errors.Join(j.err, api.About(o.commit(ctx, to), "change VM %q", rec.Name))
			}
		}
	}()
	return j
}

// finish takes the result of a job over. It reports whether the VM is gone.
// Superseded says that another command waits, whose event has been applied.
func (o *owner) finish(j *job, superseded bool) (gone bool) {
	defer func() { j.cmd.done <- j.err }()
	if j.cmd.event == evChange {
		if o.live != nil {
			o.live.setRecord(o.rec)
		}
		return false
	}
	if j.live != nil && j.cmd.event != evStart || j.cmd.event == evPause || j.cmd.event == evResume {
		o.stands(j, superseded)
		return false
	}
	if j.cmd.event == evStart && j.err == nil {
		o.setLive(j.live)
		o.move(j.live.record())
		if !superseded {
			o.transit(evStarted)
			o.record(WantRunning, "")
		}
		return false
	}
	if j.cmd.event != evStart {
		if o.live != nil {
			o.live.close()
		}
		o.setLive(nil)
	}
	switch j.cmd.event {
	case evDelete, evDestroy:
		if j.err == nil {
			o.svc.forget(o) // before anybody hears that it is gone
			return true
		}
		o.transit(evUndelete)
		o.record(WantDeleted, j.err.Error())
	case evStart:
		if superseded {
			j.err = o.superseded(evStart)
			return false
		}
		want, ended := WantStopped, evEnded
		if o.rec.Wanted == WantSuspended { // it still has its snapshot
			want, ended = WantSuspended, evSuspended
		}
		o.transit(ended)
		if !errors.Is(j.err, context.Canceled) {
			o.record(want, j.err.Error())
		}
	case evSuspend:
		if superseded {
			j.err = o.superseded(evSuspend)
			return false
		}
		o.transit(evSuspended)
		o.record(WantSuspended, errText(j.err))
	case evStop, evKill:
		if !superseded {
			o.transit(evEnded)
		}
		o.record(WantStopped, cmp.Or(errText(j.err), j.cmd.reason))
	case evDied:
		if !superseded {
			o.transit(evEnded)
		}
		if j.err != nil {
			o.record(WantStopped, j.err.Error())
		}
	}
	return false
}

// stands takes the result of a job over after which there still is the VMM that was: one
// that had it stand still or go on, and one to end it that came to nothing.
func (o *owner) stands(j *job, superseded bool) {
	if superseded {
		j.err = o.superseded(j.cmd.event)
		return
	}
	if j.cmd.event == evStop { // cancelled
		o.transit(evUnstop)
	}
	state, ev, want := api.VMRunning, evResumed, WantRunning
	if o.live.isPaused() {
		state, ev, want = api.VMPaused, evPaused, WantPaused
	}
	if !o.is(state) {
		o.transit(ev)
	}
	o.record(want, "")
}

// is says whether the VM is in a state.
func (o *owner) is(s api.VMState) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state == s
}

// superseded is the error of a command that others have cancelled.
func (o *owner) superseded(ev event) error {
	return api.Errorf(api.CodeConflict, "%s VM %q: it was stopped or deleted meanwhile", ev, o.name())
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// move takes over the address with which the VM was started.
func (o *owner) move(started Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rec.IP, o.rec.MAC = started.IP, started.MAC
}

func (o *owner) setLive(l *live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live = l
}

// record keeps what is wanted of the VM, and why it is not so.
func (o *owner) record(want Wanted, lastError string) {
	rec := o.rec
	rec.Wanted, rec.LastError = want, lastError
	if rec == o.rec && !o.unsaved {
		return
	}
	err := o.svc.store.UpdateVM(context.Background(), rec)
	if o.unsaved = err != nil; err != nil {
		o.svc.log.Error("record VM", "vm", rec.Name, "err", err)
	}
	o.svc.keepRecord(rec)
	o.publish(rec)
}

// commit makes what a change has come to durable, then known. A name has to be both
// at once: another VM may get the former one from then on.
func (o *owner) commit(ctx context.Context, rec Record) error {
	if rec == o.rec && !o.unsaved {
		return nil
	}
	if err := o.svc.store.UpdateVM(context.WithoutCancel(ctx), rec); err != nil {
		return err
	}
	o.svc.keepRecord(rec)
	o.publish(rec)
	return nil
}

func (o *owner) publish(rec Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rec = rec
}

// logExit keeps how the VMM of a running VM ended, when nobody asked it to.
func (o *owner) logExit() {
	exit := o.live.inst.Exit()
	text := death(exit, o.live.cgroup, o.svc.consoleTail(o.id, o.live.spec.Console))
	o.svc.log.Info("VMM ended", "vm", o.rec.Name, "exit", exit)
	o.record(WantStopped, text)
}

// view is the VM as the API shows it.
func (o *owner) view() api.VM {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.rec
	v := api.VM{
		ID: r.ID, Name: r.Name, Owner: r.Owner, State: o.state, Image: r.Image, ImageID: r.ImageID, Kernel: r.Kernel,
		CPUs: r.CPUs, Memory: r.Memory, RootDisk: r.RootDisk, RootSize: r.RootSize, DiskSize: r.DiskSize, Network: r.Network, NAT: r.NAT, IO: r.IO, VMM: r.VMM, MAC: r.MAC, Init: r.Init,
		Ephemeral: r.Ephemeral, Created: r.Created, LastError: r.LastError,
	}
	if r.IP.IsValid() {
		v.IP = r.IP.String()
	}
	if o.live != nil {
		v.EngineWhy = o.live.spec.Why
		v.Engine, v.PID, v.Agent = o.live.engine, o.live.inst.PID(), o.live.spec.Agent
		v.Started = &o.live.spec.Started
		v.Steps = o.live.steps
		v.Health = o.live.healthNow()
		v.Pending = o.live.spec.differs(r, o.svc.agent)
	}
	return v
}

// current returns what runs for the VM, or why nothing does.
func (o *owner) current() (*live, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state != api.VMRunning || o.live == nil {
		hint := "banger vm start " + o.rec.Name
		if o.state == api.VMPaused {
			hint = "banger vm resume " + o.rec.Name
		}
		return nil, api.Errorf(api.CodeConflict, "VM %q is %s", o.rec.Name, o.state).WithHint("%s", hint)
	}
	return o.live, nil
}
