package vm_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/api"
)

// requestOf is a request about a VM.
type requestOf func(context.Context, uint32, string) (api.Operation, error)

// ask makes requests about "a", which must succeed.
func (w *world) ask(requests ...requestOf) {
	w.t.Helper()
	for _, request := range requests {
		if err := w.wait(request(context.Background(), 0, "a")); err != nil {
			w.t.Fatal(err)
		}
	}
}

// refuse makes a request that must be refused as one that comes at the wrong time, with a
// next step that contains hint.
func (w *world) refuse(what, hint string, op api.Operation, err error) {
	w.t.Helper()
	err = w.wait(op, err)
	if api.CodeOf(err) != api.CodeConflict || !strings.Contains(api.AsError(err).Hint, hint) {
		w.t.Errorf("%s: %+v, want a conflict with a hint with %q", what, err, hint)
	}
}

// is checks the state of "a", and what its guest knows.
func (w *world) is(state api.VMState, knows string) {
	w.t.Helper()
	v := w.get("a")
	if v.State != state || w.machines.known(v.ID) != knows {
		w.t.Errorf("it is %s (%s) and knows %q; want %s, %q", v.State, v.LastError, w.machines.known(v.ID), state, knows)
	}
	w.agree()
}

// TestStandstill has a VM be paused and suspended, over restarts of the daemon and of the
// host, and go on with what it knew.
func TestStandstill(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	id := w.create("a").ID
	w.ask(w.svc.Start)
	knows := w.machines.known(id)
	again := func() {
		w.down()
		w.must(w.boot(0))
	}

	w.ask(w.svc.Pause)
	w.is(api.VMPaused, knows)
	again()
	w.is(api.VMPaused, knows)
	w.ask(w.svc.Resume)
	w.is(api.VMRunning, knows)
	if _, err := w.svc.Agent(t.Context(), 0, "a"); err != nil {
		t.Error("after it was resumed:", err)
	}

	w.ask(w.svc.Suspend)
	w.is(api.VMSuspended, "")
	again()
	w.is(api.VMSuspended, "")
	w.ask(w.svc.Start)
	w.is(api.VMRunning, knows)
	if v := w.get("a"); v.PID == 0 || v.Engine == "" || v.Agent != "cat" || len(v.Steps) == 0 || len(v.Pending) != 0 {
		t.Errorf("it woke as %+v", v)
	}

	w.ask(w.svc.Pause, w.svc.Suspend) // it wakes as one that runs
	w.down()
	w.reboot("")
	w.must(w.boot(0))
	w.is(api.VMSuspended, "")
	w.ask(w.svc.Start)
	w.is(api.VMRunning, knows)

	w.ask(w.svc.Suspend)
	w.down()
	w.loseDatabase()
	w.must(w.boot(0))
	w.is(api.VMSuspended, "")
	if v := w.get("a"); v.LastError != "" {
		t.Errorf("it says %q", v.LastError)
	}
	w.clear()
	w.down()
}

// TestStandingRefusals asks a VM that stands still for what does not suit that, and for
// what does.
func TestStandingRefusals(t *testing.T) {
	w := booted(t)
	ctx := t.Context()
	id := w.create("a").ID
	w.ask(w.svc.Start)
	knows := w.machines.known(id)
	size := int64(128 << 20)
	common := func(goesOn string) {
		t.Helper()
		if _, err := w.svc.Agent(ctx, 0, "a"); api.CodeOf(err) != api.CodeConflict || api.AsError(err).Hint != "banger vm "+goesOn+" a" {
			t.Errorf("exec: %+v", err)
		}
		op, err := w.svc.Set(ctx, 0, "a", api.SetVM{RootSize: &size})
		w.refuse("grow", "banger vm "+goesOn+" a", op, err)
		op, err = w.svc.Delete(ctx, 0, "a", false)
		w.refuse("delete", "--force", op, err)
		op, err = w.svc.Promote(ctx, 0, "a", "image")
		w.refuse("promote", "banger vm", op, err)
		for _, name := range []string{"b", "a"} {
			was := map[string]string{"a": "b", "b": "a"}[name]
			if err := w.wait(w.svc.Set(ctx, 0, was, api.SetVM{Name: &name, CPUs: new(2)})); err != nil {
				t.Errorf("rename to %s: %v", name, err)
			}
		}
		op, err = w.svc.Pause(ctx, 0, "a")
		w.refuse("pause", "", op, err)
	}
	op, err := w.svc.Resume(ctx, 0, "a")
	w.refuse("resume of one that runs", "paused", op, err)
	w.ask(w.svc.Pause)
	common("resume")
	op, err = w.svc.Start(ctx, 0, "a")
	w.refuse("start of a paused one", "banger vm resume", op, err)
	w.is(api.VMPaused, knows)
	if err := w.wait(w.svc.Stop(ctx, 0, "a", time.Minute, "")); err != nil { // by its agent
		t.Error("stop of a paused one:", err)
	}
	w.is(api.VMStopped, "")
	op, err = w.svc.Suspend(ctx, 0, "a")
	w.refuse("suspend of one that is stopped", "running", op, err)

	w.ask(w.svc.Start)
	knows = w.machines.known(id)
	w.ask(w.svc.Suspend)
	common("start")
	op, err = w.svc.Stop(ctx, 0, "a", time.Minute, "")
	w.refuse("stop of a suspended one", "banger vm start", op, err)
	op, err = w.svc.Resume(ctx, 0, "a")
	w.refuse("resume of a suspended one", "banger vm start", op, err)
	op, err = w.svc.Reset(ctx, 0, "a")
	w.refuse("reset of a suspended one", "banger vm kill", op, err)
	op, err = w.svc.Restart(ctx, 0, "a", time.Minute)
	w.refuse("restart of a suspended one", "banger vm start", op, err)
	w.ask(w.svc.Start)
	w.is(api.VMRunning, knows)
	if v := w.get("a"); strings.Join(v.Pending, " ") != "" && v.CPUs != 2 {
		t.Errorf("what was changed meanwhile: %+v", v)
	}
	w.ask(w.svc.Suspend, w.svc.Kill)
	w.is(api.VMStopped, "")
	w.ask(w.svc.Start, w.svc.Suspend, w.svc.ColdStart)
	if now := w.machines.known(id); now == "" || now == knows {
		t.Errorf("after a cold start it knows %q, as before", now)
	}
	w.is(api.VMRunning, w.machines.known(id))
	w.clear()
}

// TestSuspendMeetings has a suspend or a wake be ended by other requests.
func TestSuspendMeetings(t *testing.T) {
	w := booted(t)
	id := w.create("a").ID
	w.ask(w.svc.Start, w.svc.Suspend)
	w.machines.plan(unable)
	if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err == nil || !strings.Contains(err.Error(), "no wish") {
		t.Error("wake by a VMM that does not start:", err)
	}
	w.is(api.VMSuspended, "")
	if v := w.get("a"); !strings.Contains(v.LastError, "no wish") {
		t.Errorf("it says %q", v.LastError)
	}
	w.ask(w.svc.Start)
	w.is(api.VMRunning, w.machines.known(id))
	w.ask(w.svc.Pause)
	if err := w.machines.of(id).cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.await("the death of one that is paused is seen", func() bool { return w.get("a").State == api.VMStopped })
	if v := w.get("a"); !strings.Contains(v.LastError, "killed") {
		t.Errorf("it says %q", v.LastError)
	}
	w.clear()
}

// TestMute has a VMM do what it is told to without saying so in time: nothing is said that
// is not so for long.
func TestMute(t *testing.T) {
	w := booted(t)
	id := w.create("a").ID
	w.ask(w.svc.Start)
	knows := w.machines.known(id)
	mute := func(times int) {
		w.machines.mu.Lock()
		defer w.machines.mu.Unlock()
		w.machines.mute = times
	}
	for _, tc := range []struct {
		request requestOf
		state   api.VMState
	}{{w.svc.Pause, api.VMRunning}, {w.svc.Suspend, api.VMRunning}} {
		mute(2)
		if err := w.wait(tc.request(t.Context(), 0, "a")); err == nil {
			t.Error("it is known to have done what it did not say")
		}
		w.is(tc.state, knows)
	}
	w.ask(w.svc.Pause)
	mute(1)
	if err := w.wait(w.svc.Resume(t.Context(), 0, "a")); err == nil {
		t.Error("it is known to go on")
	}
	w.is(api.VMPaused, knows)
	w.ask(w.svc.Resume, w.svc.Suspend, w.svc.Start)
	w.is(api.VMRunning, knows)
	w.clear()
}

// TestWakeRefused spoils snapshots and what belongs to them. Nobody goes on from them;
// they are there still, and a cold start is offered and does.
func TestWakeRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(w *world, dir, id string)
		says  string
		lost  bool // from the next start of the daemon on
	}{
		"truncated": {func(w *world, dir, _ string) { w.must(os.Truncate(filepath.Join(dir, memoryFile), 3)) }, "memory had", false},
		"a file is missing": {func(w *world, dir, _ string) {
			w.must(os.Remove(filepath.Join(dir, memoryFile)))
		}, "its file: there were", false},
		"it was not sealed": {func(w *world, dir, _ string) { w.must(os.Remove(filepath.Join(dir, "snapshot.json"))) }, "not completed", false},
		"garbage": {func(w *world, dir, _ string) {
			w.must(os.WriteFile(filepath.Join(dir, "snapshot.json"), []byte("{"), 0o600))
		}, "damaged", false},
		"it is missing":       {func(w *world, dir, _ string) { w.must(os.RemoveAll(dir)) }, "missing", true},
		"another VMM":         {altered("version", "0.9"), "the version of cat was 0.9 and is 1", false},
		"another CPU":         {altered("cpu", "8086"), "the host's CPU was 8086", false},
		"a lesser CPU":        {altered("features", []string{"teleport"}), "features no more: teleport", false},
		"another accelerator": {altered("accel", "kvm"), "the accelerator was kvm", false},
		"another kernel":      {altered("kernel", map[string]any{"name": "assets/vmlinux", "size": 1}), "the kernel", false},
		"the root was written to": {func(w *world, _, id string) {
			files, err := filepath.Glob(filepath.Join(w.state, "vms", id, "upper-*"))
			w.must(err)
			w.must(os.Chtimes(files[0], time.Time{}, time.Now()))
		}, "was changed at", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := booted(t)
			id := w.create("a").ID
			w.ask(w.svc.Start, w.svc.Suspend)
			dirs, err := filepath.Glob(filepath.Join(w.state, "suspended", id+"-*"))
			if err != nil || len(dirs) != 1 {
				t.Fatal(dirs, err)
			}
			tc.spoil(w, dirs[0], id)
			for range 2 {
				op, err := w.svc.Start(t.Context(), 0, "a")
				w.refuse("start", "banger vm start --cold a", op, err)
				if v := w.get("a"); v.State != api.VMSuspended || !strings.Contains(v.LastError, tc.says) {
					t.Errorf("it is %s and says %q; want %q", v.State, v.LastError, tc.says)
				}
			}
			if len(w.machines.running()) != 0 {
				t.Error("something runs")
			}
			w.down()
			w.must(w.boot(0))
			if v := w.get("a"); tc.lost && (v.State != api.VMStopped || !strings.Contains(v.LastError, "lost")) {
				t.Errorf("after a restart of the daemon it is %s and says %q", v.State, v.LastError)
			} else if !tc.lost && v.State != api.VMSuspended {
				t.Errorf("after a restart of the daemon it is %s", v.State)
			}
			w.ask(w.svc.ColdStart)
			w.is(api.VMRunning, w.machines.known(id))
			w.clear()
		})
	}
}

// altered changes what a snapshot says that it is of.
func altered(field string, value any) func(w *world, dir, id string) {
	return func(w *world, dir, _ string) {
		path := filepath.Join(dir, "snapshot.json")
		text, err := os.ReadFile(path)
		w.must(err)
		var all map[string]any
		w.must(json.Unmarshal(text, &all))
		if _, has := all[field]; !has {
			w.t.Errorf("snapshot.json says nothing of %s: %s", field, text)
		}
		all[field] = value
		text, err = json.Marshal(all)
		w.must(err)
		w.must(os.WriteFile(path, text, 0o600))
	}
}
