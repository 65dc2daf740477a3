package vm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/resource"
	"banger/internal/vm"
)

// begun is an operation that may take until something else happens.
func begun(t *testing.T) func(api.Operation, error) api.Operation {
	return func(op api.Operation, err error) api.Operation {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return op
	}
}

// booted makes a world with a daemon that ends with t.
func booted(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.down()
		if t.Failed() {
			t.Logf("%s", w.log.text)
		}
	})
	return w
}

// TestMeetings has a request come while another is under way on the same VM.
func TestMeetings(t *testing.T) {
	start := func(w *world) (api.Operation, error) { return w.svc.Start(context.Background(), 0, "a") }
	stop := func(w *world) (api.Operation, error) { return w.svc.Stop(context.Background(), 0, "a", time.Hour, "") }
	kill := func(w *world) (api.Operation, error) { return w.svc.Kill(context.Background(), 0, "a") }
	remove := func(w *world) (api.Operation, error) { return w.svc.Delete(context.Background(), 0, "a", false) }
	destroy := func(w *world) (api.Operation, error) { return w.svc.Delete(context.Background(), 0, "a", true) }
	rename := func(w *world) (api.Operation, error) {
		return w.svc.Set(context.Background(), 0, "a", api.SetVM{Name: new("b")})
	}
	restart := func(w *world) (api.Operation, error) { return w.svc.Restart(context.Background(), 0, "a", time.Hour) }
	reset := func(w *world) (api.Operation, error) { return w.svc.Reset(context.Background(), 0, "a") }
	promote := func(w *world) (api.Operation, error) { return w.svc.Promote(context.Background(), 0, "a", "image") }
	type request func(*world) (api.Operation, error)
	cancel := request(nil) // of the first operation

	for name, tc := range map[string]struct {
		mood   mood // of the machine: what keeps the first request under way
		before bool // the VM runs before
		first  request
		in     api.VMState // in which the second one comes
		second request
		want   [2]string // in the errors of both; empty: none
		end    string    // the VM's state in the end; empty: there is none
	}{
		"start, stop":           {silent, false, start, "starting", stop, [2]string{"meanwhile", ""}, "stopped"},
		"start, kill":           {silent, false, start, "starting", kill, [2]string{"meanwhile", ""}, "stopped"},
		"start, start":          {silent, false, start, "starting", start, [2]string{"?", "it is starting"}, "starting"},
		"start, delete":         {silent, false, start, "starting", remove, [2]string{"?", "it is starting"}, "starting"},
		"start, delete --force": {silent, false, start, "starting", destroy, [2]string{"meanwhile", ""}, ""},
		"start, set":            {silent, false, start, "starting", rename, [2]string{"?", "it is starting"}, "starting"},
		"start, reset":          {silent, false, start, "starting", reset, [2]string{"meanwhile", ""}, "?"},
		"start, promote":        {silent, false, start, "starting", promote, [2]string{"?", "it is starting"}, "starting"},
		"start, cancel":         {silent, false, start, "starting", cancel, [2]string{"cancelled", ""}, "stopped"},
		"stop, start":           {stubborn, true, stop, "stopping", start, [2]string{"?", "it is stopping"}, "stopping"},
		"stop, kill":            {stubborn, true, stop, "stopping", kill, [2]string{"meanwhile", ""}, "stopped"},
		"stop, delete --force":  {stubborn, true, stop, "stopping", destroy, [2]string{"meanwhile", ""}, ""},
		"stop, set":             {stubborn, true, stop, "stopping", rename, [2]string{"?", "it is stopping"}, "stopping"},
		"stop, cancel":          {stubborn, true, stop, "stopping", cancel, [2]string{"cancelled", ""}, "running"},
		"restart, kill":         {stubborn, true, restart, "stopping", kill, [2]string{"meanwhile", ""}, "stopped"},
		"promote, delete -f":    {silent, false, promote, "stopped", destroy, [2]string{"?", ""}, ""},
		"promote, cancel":       {silent, false, promote, "stopped", cancel, [2]string{"cancelled", ""}, "stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := booted(t)
			w.machines.plan(tc.mood)
			w.create("a")
			if tc.before {
				if err := w.wait(start(w)); err != nil {
					t.Fatal(err)
				}
			}
			first := begun(t)(tc.first(w))
			w.await("the first request is under way", func() bool {
				return w.get("a").State == tc.in && len(w.machines.running()) == 1
			})
			check := func(op api.Operation, want string) {
				t.Helper()
				if want == "?" {
					return
				}
				err := w.wait(op, nil)
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: %v, want %q", op.Kind, err, want)
				}
			}
			if tc.second == nil {
				w.ops.Cancel(first.ID)
			} else {
				check(begun(t)(tc.second(w)), tc.want[1])
			}
			check(first, tc.want[0])
			v, err := w.svc.Get(t.Context(), 0, "a")
			if tc.end != "?" && (err == nil) != (tc.end != "") || err == nil && tc.end != "?" && string(v.State) != tc.end {
				t.Errorf("in the end it is %q, %v; want %q", v.State, err, tc.end)
			}
			w.clear()
		})
	}
}

// TestKillBehindStop has a kill and a forced deletion come while a stop waits for a
// start that takes its time to give back what it has.
func TestForceBehindStop(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.fail = func(action string, ref resource.Ref) error {
		if action == "release" && ref.Kind == vm.KindRunDir {
			<-hold
		}
		return nil
	}
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	defer w.down()
	w.machines.plan(silent)
	w.create("a")
	start := begun(t)(w.svc.Start(t.Context(), 0, "a"))
	w.await("it boots", func() bool { return len(w.machines.running()) == 1 })
	stop := begun(t)(w.svc.Stop(t.Context(), 0, "a", 0, ""))
	w.await("it is stopping", func() bool { return w.get("a").State == api.VMStopping })
	destroy := begun(t)(w.svc.Delete(t.Context(), 0, "a", true))
	w.await("it is being deleted", func() bool { return w.get("a").State == api.VMDeleting })
	close(hold)
	for _, op := range []api.Operation{start, stop} {
		if err := w.wait(op, nil); err == nil || !strings.Contains(err.Error(), "meanwhile") {
			t.Errorf("%s: %v", op.Kind, err)
		}
	}
	if err := w.wait(destroy, nil); err != nil {
		t.Error(err)
	}
	w.empty()
}

// TestRename has the former name of a VM be free, and nobody else's, from when on the
// new one is known: also while its guest, which hangs, is told.
func TestRename(t *testing.T) {
	w := booted(t)
	first := w.create("a")
	if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
		t.Fatal(err)
	}
	wake := w.machines.hang(w.machines.of(first.ID))
	rename := begun(t)(w.svc.Set(t.Context(), 0, "a", api.SetVM{Name: new("b")}))
	w.await("another can have the name", func() bool {
		_, op, err := w.svc.Create(t.Context(), 0, api.CreateVM{Name: "a"})
		return w.wait(op, err) == nil
	})
	for range 20 {
		if v := w.get("a"); v.ID == first.ID {
			t.Fatal("the name leads to the VM that had it before")
		}
		if v := w.get("b"); v.ID != first.ID {
			t.Fatal("the new name leads to another VM")
		}
	}
	wake()
	if err := w.wait(rename, nil); err != nil {
		t.Error(err)
	}
	w.clear()
}

// TestDeletedIsGone looks for a VM as soon as its deletion has succeeded.
func TestDeletedIsGone(t *testing.T) {
	w := booted(t)
	for range 50 {
		w.create("a")
		if err := w.wait(w.svc.Delete(t.Context(), 0, "a", false)); err != nil {
			t.Fatal(err)
		}
		if vms, _ := w.svc.List(t.Context(), 0); len(vms) != 0 {
			t.Fatalf("it is listed: %+v", vms)
		}
	}
	w.empty()
}

// TestShutdownInStop has a daemon end while a guest takes its time to power off: it
// is not killed for that, and the next daemon has it.
func TestShutdownInStop(t *testing.T) {
	w := newWorld(t)
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	w.machines.plan(stubborn)
	w.create("a")
	if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
		t.Fatal(err)
	}
	begun(t)(w.svc.Stop(t.Context(), 0, "a", time.Hour, ""))
	w.await("it is stopping", func() bool { return w.get("a").State == api.VMStopping })
	w.down()
	if len(w.machines.running()) != 1 {
		t.Error("the VM was killed")
	}
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	defer w.down()
	w.agree()
	w.clear()
}

// TestRefusedRelease has the host refuse to give something back: the VM says so, does
// not start on what may still be in use, and goes on when the host has relented.
func TestRefusedRelease(t *testing.T) {
	for _, kind := range []string{vm.KindCgroup, vm.KindRunDir, disk.KindUpper, vm.KindDir} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			busy := make(chan struct{}, 1)
			busy <- struct{}{}
			w.fail = func(action string, ref resource.Ref) error {
				if action == "release" && ref.Kind == kind && len(busy) > 0 {
					return errors.New("device or resource busy")
				}
				return nil
			}
			if err := w.boot(0); err != nil {
				t.Fatal(err)
			}
			defer w.down()
			w.create("a")
			if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
				t.Fatal(err)
			}
			whole := slices.Contains([]string{disk.KindUpper, vm.KindDir}, kind) // these go with the VM only
			err := w.wait(w.svc.Kill(t.Context(), 0, "a"))
			if !whole {
				if err == nil || w.get("a").LastError == "" {
					t.Errorf("kill: %v; last error %q", err, w.get("a").LastError)
				}
				if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err == nil {
					t.Error("it started again")
				}
			}
			if err := w.wait(w.svc.Delete(t.Context(), 0, "a", true)); err == nil {
				t.Error("deleted, and something is left")
			}
			if v := w.get("a"); v.State != api.VMStopped || !strings.Contains(v.LastError, "busy") {
				t.Errorf("it is %s; last error %q", v.State, v.LastError)
			}
			<-busy
			w.clear()
		})
	}
}

// TestLostFiles removes files of a VM that is stopped.
func TestLostFiles(t *testing.T) {
	for name, tc := range map[string]struct {
		lost, says string
		reset      bool // is of help
	}{
		"root":      {"vms/*/upper*", "banger vm reset a", true},
		"work disk": {"vms/*/work*", "backup", false},
		"directory": {"vms/*", "banger vm reset a", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := booted(t)
			w.create("a")
			for _, request := range []func(context.Context, uint32, string) (api.Operation, error){w.svc.Start, w.svc.Kill} {
				if err := w.wait(request(t.Context(), 0, "a")); err != nil {
					t.Fatal(err)
				}
			}
			lost, err := filepath.Glob(filepath.Join(w.state, tc.lost))
			if err != nil || len(lost) != 1 {
				t.Fatal(lost, err)
			}
			if err := os.RemoveAll(lost[0]); err != nil {
				t.Fatal(err)
			}
			err = w.wait(w.svc.Start(t.Context(), 0, "a"))
			if err == nil || api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(api.AsError(err).Hint, tc.says) {
				t.Errorf("start: %v; want a hint with %q", api.AsError(err), tc.says)
			}
			if err := w.wait(w.svc.Reset(t.Context(), 0, "a")); err != nil {
				t.Error(err)
			}
			if err := w.wait(w.svc.Start(t.Context(), 0, "a")); (err == nil) != tc.reset {
				t.Errorf("start after a reset: %v", err)
			}
			w.clear()
		})
	}
}

// TestGrowth kills the daemon at each statement of a growth: the next start has the
// disks in the sizes that the VM is said to have.
func TestGrowth(t *testing.T) {
	w := booted(t)
	w.create("a")
	for _, request := range []func(context.Context, uint32, string) (api.Operation, error){w.svc.Start, w.svc.Kill} {
		if err := w.wait(request(t.Context(), 0, "a")); err != nil {
			t.Fatal(err)
		}
	}
	size := int64(64 << 20)
	for passages := 5; passages < 20; passages++ {
		w.down()
		err := w.boot(passages)
		size += 1 << 20
		if err == nil {
			_ = w.wait(w.svc.Set(t.Context(), 0, "a", api.SetVM{RootSize: &size, DiskSize: &size})) // it may be dead
		}
		w.down()
		if err := w.boot(0); err != nil {
			t.Fatal(err)
		}
		if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
			t.Fatal(err)
		}
		v := w.get("a")
		for kind, want := range map[string]int64{"upper": v.RootSize, "work": v.DiskSize} {
			files, err := filepath.Glob(filepath.Join(w.state, "vms/*/"+kind+"*"))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			if info, err := os.Stat(files[0]); err != nil || info.Size() != want {
				t.Errorf("death after %d statements: %s has %v bytes, want %d; %v", passages, kind, info.Size(), want, err)
			}
		}
		if err := w.wait(w.svc.Kill(t.Context(), 0, "a")); err != nil {
			t.Fatal(err)
		}
	}
	w.clear()
}

// TestAdoptionNeedsLittle has a daemon come back that could not start a VM now: one
// that runs goes on all the same.
func TestAdoptionNeedsLittle(t *testing.T) {
	w := newWorld(t)
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	v := w.create("a")
	if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
		t.Fatal(err)
	}
	w.down()
	w.lacking = errors.New("write initramfs: no space left on device")
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	if w.machines.of(v.ID) == nil || w.get("a").State != api.VMRunning {
		t.Errorf("it was given up: %+v", w.get("a"))
	}
	w.agree()
	w.clear()
	w.down()
}

// TestUnfinishedDeletion has a daemon find a VM half deleted, and not get further: it
// is listed, and goes when it is deleted once more.
func TestUnfinishedDeletion(t *testing.T) {
	w := newWorld(t)
	busy := true
	w.fail = func(action string, ref resource.Ref) error {
		if busy && action == "release" && ref.Kind == disk.KindWork {
			return errors.New("device or resource busy")
		}
		return nil
	}
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	w.create("a")
	if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
		t.Fatal(err)
	}
	if err := w.wait(w.svc.Delete(t.Context(), 0, "a", true)); err == nil {
		t.Error("it was deleted")
	}
	w.down()
	_ = w.boot(1 << 40) // its recovery is not complete
	if v := w.get("a"); v.State != api.VMStopped || !strings.Contains(v.LastError, "busy") {
		t.Errorf("%+v", v)
	}
	w.down()
	busy = false
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	defer w.down()
	w.empty()
}

// TestLease has ephemeral VMs go with the last lease, and no lease be given on one
// that goes; a deletion that is refused is tried again.
func TestLease(t *testing.T) {
	w := newWorld(t)
	w.grace = time.Millisecond
	var refusals atomic.Int32
	w.fail = func(action string, ref resource.Ref) error {
		if action == "release" && ref.Kind == disk.KindUpper && refusals.Add(1) <= 7 {
			return errors.New("device or resource busy")
		}
		return nil
	}
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	defer w.down()
	w.machines.plan(silent)
	v, _, err := w.svc.Create(t.Context(), 0, api.CreateVM{Name: "a", Ephemeral: true, Start: true})
	if err != nil {
		t.Fatal(err)
	}
	w.await("it has gone", func() bool {
		release, err := w.svc.Lease(t.Context(), 0, v.ID)
		if err == nil {
			time.Sleep(2 * time.Millisecond)
			if _, err := w.svc.Get(t.Context(), 0, v.ID); err != nil {
				t.Error("a VM went while it was held")
			}
			release()
		} else if code := api.CodeOf(err); code != api.CodeConflict && code != api.CodeNotFound {
			t.Error(err)
		}
		time.Sleep(2 * time.Millisecond)
		return api.CodeOf(err) == api.CodeNotFound
	})
	w.empty()
}

// TestAgentGivesUp has a guest whose agent gives it up, and whose machine stays on all the
// same: it is not waited for, nor left behind.
func TestAgentGivesUp(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	defer w.down()
	w.create("a")
	w.machines.plan(hopeless)
	err := w.wait(w.svc.Start(context.Background(), 0, "a"))
	if api.CodeOf(err) != api.CodeGuest || !strings.Contains(err.Error(), `the agent gave up: "no disk vda"`) {
		t.Errorf("got %v", err)
	}
	w.is(api.VMStopped, "")
}
