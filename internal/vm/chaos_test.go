package vm_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/api"

	"pgregory.net/rapid"
)

// request is what somebody does to a VM, and perhaps waits for.
type request struct {
	what   string
	name   string
	number int
	wait   bool
}

func (r request) String() string {
	return fmt.Sprintf("%s %s %d wait=%t", r.what, r.name, r.number, r.wait)
}

var requests = rapid.Custom(func(t *rapid.T) request {
	return request{
		what: rapid.SampledFrom([]string{
			"create", "create", "run", "start", "start", "stop", "stop", "kill", "delete", "destroy", "destroy", "rename", "grow", "restart",
			"reset", "promote", "lease", "pause", "resume", "suspend", "suspend", "cold", "shoot", "hang", "cancel", "look", "authorize", "agent",
		}).Draw(t, "what"),
		name:   rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"),
		number: rapid.IntRange(0, 5).Draw(t, "number"),
		wait:   rapid.Bool().Draw(t, "wait"),
	}
})

// day is what happens between two starts of the daemon.
type day struct {
	passages int // before it dies; 0: it ends in order
	moods    []mood
	people   [][]request // at the same time
}

var days = rapid.Custom(func(t *rapid.T) day {
	d := day{
		moods:  rapid.SliceOfN(rapid.SampledFrom([]mood{obedient, obedient, obedient, stubborn, silent, stillborn, unable}), 0, 6).Draw(t, "moods"),
		people: rapid.SliceOfN(rapid.SliceOfN(requests, 1, 6), 1, 4).Draw(t, "people"),
	}
	if rapid.Bool().Draw(t, "dies") {
		d.passages = rapid.IntRange(1, 200).Draw(t, "passages")
	}
	return d
})

// TestChaos has several people make requests of a daemon at once, that dies
// between any two of its statements or ends while they do, and comes back. In
// the end all VMs are deleted, and nothing is left.
func TestChaos(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.grace = 20 * time.Millisecond
		story := rapid.SliceOfN(days, 1, 3).Draw(t, "days")
		defer func() { // who meets whom is not drawn: a failure may not come again
			if t.Failed() {
				fmt.Fprintf(os.Stderr, "%+v\n%s", story, w.log.text)
			}
		}()
		for _, d := range story {
			w.live(d)
		}
		w.machines.plan()
		if err := w.boot(0); err != nil {
			t.Fatalf("recovery: %v", err)
		}
		w.agree()
		w.clear()
		w.down()
	})
}

// live has a day pass.
func (w *world) live(d day) {
	w.machines.plan(d.moods...)
	err := w.boot(d.passages)
	defer w.down()
	if err != nil {
		if d.passages == 0 {
			w.t.Errorf("recovery: %v", err)
		}
		return
	}
	if d.passages == 0 {
		w.agree()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var people sync.WaitGroup
	for _, requests := range d.people {
		people.Go(func() {
			for _, r := range requests {
				w.request(ctx, r)
			}
		})
	}
	gone := make(chan struct{})
	go func() {
		people.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-w.gate.dead:
		<-gone
	case <-time.After(patience):
		w.t.Errorf("somebody waits for ever:\n%s", w.log.text)
	}
}

// request makes a request. Whether it is refused does not matter here.
func (w *world) request(ctx context.Context, r request) {
	var op api.Operation
	var err error
	switch r.what {
	case "create":
		_, op, err = w.svc.Create(ctx, 0, api.CreateVM{Name: r.name})
	case "run":
		_, op, err = w.svc.Create(ctx, 0, api.CreateVM{Name: r.name, Start: true, Ephemeral: r.number%2 == 0})
	case "start":
		op, err = w.svc.Start(ctx, 0, r.name)
	case "stop":
		op, err = w.svc.Stop(ctx, 0, r.name, time.Duration(1+r.number*10)*time.Millisecond, "")
	case "kill":
		op, err = w.svc.Kill(ctx, 0, r.name)
	case "delete", "destroy":
		op, err = w.svc.Delete(ctx, 0, r.name, r.what == "destroy")
	case "rename":
		to := string(rune('a' + r.number%3))
		op, err = w.svc.Set(ctx, 0, r.name, api.SetVM{Name: &to})
	case "grow":
		size := int64(64+r.number) << 20
		op, err = w.svc.Set(ctx, 0, r.name, api.SetVM{RootSize: &size, DiskSize: &size})
	case "restart":
		op, err = w.svc.Restart(ctx, 0, r.name, 20*time.Millisecond)
	case "reset":
		op, err = w.svc.Reset(ctx, 0, r.name)
	case "pause":
		op, err = w.svc.Pause(ctx, 0, r.name)
	case "resume":
		op, err = w.svc.Resume(ctx, 0, r.name)
	case "suspend":
		op, err = w.svc.Suspend(ctx, 0, r.name)
	case "cold":
		op, err = w.svc.ColdStart(ctx, 0, r.name)
	case "promote":
		op, err = w.svc.Promote(ctx, 0, r.name, "image")
	case "cancel":
		for _, op := range w.ops.List() {
			if op.Finished == nil {
				w.ops.Cancel(op.ID)
			}
		}
		return
	default:
		w.disturb(ctx, r)
		return
	}
	if err == nil && r.wait {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond) // a silent guest is waited for much longer
		defer cancel()
		_, _ = w.ops.Wait(ctx, op.ID)
	}
}

// disturb does what makes no operation.
func (w *world) disturb(ctx context.Context, r request) {
	v, err := w.svc.Get(ctx, 0, r.name)
	if err != nil {
		return
	}
	m := w.machines.of(v.ID)
	pause := time.Duration(r.number) * time.Millisecond
	switch {
	case r.what == "lease":
		if release, err := w.svc.Lease(ctx, 0, r.name); err == nil {
			time.Sleep(pause)
			release()
		}
	case r.what == "shoot" && m != nil:
		_ = m.cmd.Process.Kill() // it may have ended
	case r.what == "hang" && m != nil:
		wake := w.machines.hang(m)
		time.Sleep(pause)
		wake()
	case r.what == "authorize":
		ctx, cancel := context.WithTimeout(ctx, pause)
		defer cancel()
		_, _ = w.svc.AuthorizeSSH(ctx, 0, r.name, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7kbLzqjMkzXLxOQzcAAdb3pJpVgsRvLYNVAWqQJYfP")
	case r.what == "agent":
		ctx, cancel := context.WithTimeout(ctx, pause)
		defer cancel()
		_, _ = w.svc.Agent(ctx, 0, r.name)
	}
}

// agree checks that what a daemon that was just started says is true. A VMM of an
// earlier day may be about to end: then it is soon.
func (w *world) agree() {
	w.t.Helper()
	var lie string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if lie = w.lie(); lie == "" {
			return
		}
	}
	w.t.Errorf("%s", lie)
}

// lie is something that the daemon says and that is not so.
func (w *world) lie() string {
	ctx := context.Background()
	vms, err := w.svc.List(ctx, 0)
	if err != nil {
		return err.Error()
	}
	recs, err := w.db.VMs(ctx)
	if err != nil || len(recs) != len(vms) {
		return fmt.Sprintf("%d VMs are listed, %d are in the database: %v", len(vms), len(recs), err)
	}
	pids, known := w.pids(), map[string]bool{}
	running := map[string]bool{}
	for _, v := range vms {
		pid, runs := pids[v.ID]
		if (v.State == api.VMRunning || v.State == api.VMPaused) != runs || v.PID != pid {
			return fmt.Sprintf("VM %q is %s, in process %d; its VMM is process %d", v.Name, v.State, v.PID, pid)
		}
		running["vm/"+v.ID+"/run"], known[v.ID] = runs, true
	}
	for id := range pids {
		if !known[id] {
			return fmt.Sprintf("a VMM runs of %s", id)
		}
	}
	if lie := w.standstillLie(vms); lie != "" {
		return lie
	}
	refs, err := w.db.Resources(ctx, "")
	if err != nil {
		return err.Error()
	}
	found, err := w.ledger.Check(ctx)
	if err != nil || len(found) > 0 {
		return fmt.Sprintf("ledger and host: %v, %v", found, err)
	}
	for _, ref := range refs {
		if ref.State != "held" || strings.HasSuffix(ref.Owner, "/run") && !running[ref.Owner] {
			return fmt.Sprintf("in the ledger: %+v", ref)
		}
	}
	return ""
}
