package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/resource"
	"banger/internal/vm"
)

// damage is what is done to an installation while no daemon runs, and what the next
// one has to make of a VM that ran, one that was stopped and one that never started.
type damage struct {
	do      func(w *world, id string)
	stopped bool     // the one that ran is ended: nothing told any more whose it was
	lost    bool     // that one is unknown, and its directory set aside
	aside   []string // what is set aside, as patterns below the state directory
	says    string   // of the one that is ended, in its last error
}

var damages = map[string]damage{
	"none":                     {do: func(*world, string) {}},
	"handles.json is missing":  {do: func(w *world, id string) { w.remove("vms/" + id + "/handles.json") }},
	"handles.json is empty":    {do: rewrite("handles.json", ""), aside: []string{"vms/*/handles.json.lost-*"}},
	"handles.json is cut off":  {do: rewrite("handles.json", `{"schema":1,"obj`), aside: []string{"vms/*/handles.json.lost-*"}},
	"handles.json is garbage":  {do: rewrite("handles.json", "\x00\xff\x13"), aside: []string{"vms/*/handles.json.lost-*"}},
	"handles.json is of later": {do: rewrite("handles.json", `{"schema":4711}`), aside: []string{"vms/*/handles.json.lost-*"}},
	"vm.json is garbage":       {do: rewrite("vm.json", "\x00\xff\x13"), aside: []string{"vms/*/vm.json.lost-*"}},
	"the database is missing":  {do: func(w *world, _ string) { w.loseDatabase() }},
	"the database is an older one": {do: func(w *world, _ string) {
		w.loseDatabase()
		w.must(os.Rename(filepath.Join(w.state, "older.db"), filepath.Join(w.state, "banger.db")))
	}},
	"the database and a handles.json are missing": {do: func(w *world, id string) {
		w.loseDatabase()
		w.remove("vms/" + id + "/handles.json")
	}, stopped: true, says: ""},
	"the database is missing, handles.json is garbage": {do: func(w *world, id string) {
		w.loseDatabase()
		rewrite("handles.json", "garbage")(w, id)
	}, stopped: true, says: "the database was lost", aside: []string{"vms/*/handles.json.lost-*"}},
	"the database is missing, handles.json is of another boot": {do: func(w *world, id string) {
		w.loseDatabase()
		w.editHandles(id, func(h *resource.Handles) { h.BootID = "an earlier boot" })
	}, stopped: true, says: "the host was restarted while the VM ran"},
	"the database is missing, handles.json is of another installation": {do: func(w *world, id string) {
		w.loseDatabase()
		w.editHandles(id, func(h *resource.Handles) { h.Installation = "somebody" })
	}, stopped: true, says: "the database was lost"},
	"the database is missing, vm.json is garbage": {do: func(w *world, id string) {
		w.loseDatabase()
		rewrite("vm.json", "garbage")(w, id)
	}, lost: true, aside: []string{"lost-*/vms/*/work-*"}},
	"the database is missing, vm.json is another's": {do: func(w *world, id string) {
		w.loseDatabase()
		rewrite("vm.json", `{"schema":1,"vm":{"ID":"0123","Name":"x","Wanted":"stopped","Network":"none"}}`)(w, id)
	}, lost: true, aside: []string{"lost-*/vms/*/work-*"}},
	"the machine is restarted": {do: (*world).reboot, stopped: true, says: "the host was restarted while the VM ran"},
	"the machine is restarted, the database is missing": {do: func(w *world, id string) {
		w.reboot(id)
		w.loseDatabase()
	}, stopped: true, says: "the host was restarted while the VM ran"},
}

// rewrite replaces a file in a VM's directory.
func rewrite(name, text string) func(*world, string) {
	return func(w *world, id string) {
		w.must(os.WriteFile(filepath.Join(w.state, "vms", id, name), []byte(text), 0o600))
	}
}

func (w *world) remove(name string) { w.must(os.Remove(filepath.Join(w.state, name))) }

func (w *world) loseDatabase() {
	files, err := filepath.Glob(filepath.Join(w.state, "banger.db*"))
	w.must(err)
	for _, file := range files {
		w.must(os.Remove(file))
	}
}

func (w *world) editHandles(id string, edit func(*resource.Handles)) {
	path := filepath.Join(w.state, "vms", id, "handles.json")
	var h resource.Handles
	w.must(resource.ReadCopy(path, resource.HandlesSchema, &h))
	edit(&h)
	w.must(resource.WriteCopy(path, h))
}

// reboot restarts the machine: what is of the kernel, and what lies on a tmpfs, goes.
func (w *world) reboot(string) {
	w.bootID = "the next boot"
	for _, m := range w.machines.running() {
		w.must(m.cmd.Process.Kill())
		<-m.exited
		w.must(os.Remove(m.Cgroup))
		w.must(os.RemoveAll(m.RunDir))
	}
}

// work returns the inode of the work disk of a VM.
func (w *world) work(id string) os.FileInfo {
	files, err := filepath.Glob(filepath.Join(w.state, "vms", id, "work-*.ext4"))
	w.must(err)
	if len(files) != 1 {
		w.t.Fatalf("work disks of %s: %q", id, files)
	}
	info, err := os.Stat(files[0])
	w.must(err)
	return info
}

// TestDamage does each damage to an installation with a VM that runs. What another copy
// knows is not lost, what nobody knows is set aside, and all can be deleted.
func TestDamage(t *testing.T) {
	for name, tc := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.must(w.boot(0))
			w.copyDatabase("older.db") // it knows no VM
			runs, stops, never := w.create("runs"), w.create("stops"), w.create("never")
			for _, err := range []error{
				w.wait(w.svc.Start(t.Context(), 0, "runs")), w.wait(w.svc.Start(t.Context(), 0, "stops")), w.wait(w.svc.Kill(t.Context(), 0, "stops")),
			} {
				w.must(err)
			}
			before, disks := w.machines.of(runs.ID), map[string]os.FileInfo{runs.ID: w.work(runs.ID), stops.ID: w.work(stops.ID)}
			w.down()
			tc.do(w, runs.ID)

			for range 2 { // the second finds all in order
				w.must(w.boot(0))
				w.agree()
				if tc.lost {
					if _, err := w.svc.Get(t.Context(), 0, runs.ID); api.CodeOf(err) != api.CodeNotFound {
						t.Errorf("the one of which nothing is known: %v", err)
					}
				} else {
					w.survived(runs, disks[runs.ID], !tc.stopped)
				}
				if m := w.machines.of(runs.ID); !tc.stopped && !tc.lost && m != before {
					t.Errorf("its VMM is %v, it was %v", m, before)
				}
				if v, err := w.svc.Get(t.Context(), 0, runs.ID); err == nil && tc.stopped && !strings.Contains(v.LastError, tc.says) {
					t.Errorf("why it does not run: %q, want %q", v.LastError, tc.says)
				}
				w.survived(stops, disks[stops.ID], false)
				if v := w.get("never"); v.ID != never.ID || v.State != api.VMStopped {
					t.Errorf("the one that never started: %+v", v)
				}
				for _, pattern := range tc.aside {
					if files, err := filepath.Glob(filepath.Join(w.state, pattern)); err != nil || len(files) != 1 {
						t.Errorf("set aside as %s: %q, %v", pattern, files, err)
					}
				}
				w.down()
			}
			w.must(w.boot(0))
			for _, v := range []api.VM{stops, never} {
				if err := w.wait(w.svc.Start(t.Context(), 0, v.ID)); err != nil {
					t.Errorf("start afterwards: %v", err)
				}
			}
			if files, err := filepath.Glob(filepath.Join(w.state, "lost-*")); err != nil || len(files) > 0 != tc.lost {
				t.Errorf("set aside: %q, %v", files, err)
			}
			w.clear()
			w.down()
			if t.Failed() {
				t.Logf("%s", w.log.text)
			}
		})
	}
}

// survived checks that a VM is what it was.
func (w *world) survived(was api.VM, work os.FileInfo, runs bool) {
	w.t.Helper()
	v, err := w.svc.Get(context.Background(), 0, was.ID)
	if err != nil {
		w.t.Error(err)
		return
	}
	state := api.VMStopped
	if runs {
		state = api.VMRunning
	}
	if v.State != state || v.Name != was.Name || v.DiskSize != was.DiskSize || !v.Created.Equal(was.Created) || !os.SameFile(w.work(v.ID), work) {
		w.t.Errorf("it is %+v, and was %+v", v, was)
	}
	_, err = os.Stat(filepath.Join(w.state, "vms", v.ID, "handles.json"))
	if runs != (err == nil) || !runs && !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("VM %q runs: %t; its handles.json: %v", v.Name, runs, err)
	}
}

// copyDatabase keeps the database as it is now, under another name.
func (w *world) copyDatabase(name string) {
	w.down()
	text, err := os.ReadFile(filepath.Join(w.state, "banger.db"))
	w.must(err)
	w.must(os.WriteFile(filepath.Join(w.state, name), text, 0o600))
	w.must(w.boot(0))
}

// TestForgedHandles has handles.json claim what is not the VM's, while the database is
// lost: nothing that does not bear our tag is touched.
func TestForgedHandles(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	v := w.create("a")
	w.must(w.wait(w.svc.Start(t.Context(), 0, "a")))
	w.down()
	w.loseDatabase()
	precious := filepath.Join(filepath.Dir(w.state), "precious")
	w.must(os.Mkdir(precious, 0o700))
	w.editHandles(v.ID, func(h *resource.Handles) {
		h.Objects = append(h.Objects,
			resource.Object{Owner: "vm/" + v.ID + "/run", Kind: "run-dir", Name: "../precious"},
			resource.Object{Owner: "vm/" + v.ID + "/run", Kind: "cgroup", Name: "../../.."},
			resource.Object{Owner: "vm/" + v.ID, Kind: disk.KindWork, Name: "vms/../../precious"},
			resource.Object{Owner: "vm/" + v.ID, Kind: "no such kind", Name: "x"},
			resource.Object{Owner: "somebody", Kind: "dir", Name: "vms"})
	})
	w.must(w.boot(0))
	w.survived(v, w.work(v.ID), true)
	w.agree()
	w.clear()
	w.down()
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// TestTakenMeanwhile puts an older database back, with which another VM took the name of
// one that it does not know: both are there afterwards.
func TestTakenMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	w.copyDatabase("older.db")
	first := w.create("a")
	w.down()
	hidden := filepath.Join(w.state, "hidden")
	w.must(os.Rename(filepath.Join(w.state, "vms", first.ID), hidden))
	w.loseDatabase()
	w.must(os.Rename(filepath.Join(w.state, "older.db"), filepath.Join(w.state, "banger.db")))
	w.must(w.boot(0))
	second := w.create("a")
	w.down()
	w.must(os.Rename(hidden, filepath.Join(w.state, "vms", first.ID)))
	w.must(w.boot(0))
	if v := w.get("a"); v.ID != second.ID {
		t.Errorf("a is %s, want %s", v.ID, second.ID)
	}
	if v := w.get(first.ID); v.Name != "a-"+first.ID {
		t.Errorf("the other one is called %q", v.Name)
	}
	w.clear()
	w.down()
}

// TestOlderRecord has vm.json be of a banger that knew less: what it lacks is filled in.
func TestOlderRecord(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	v := w.create("a")
	w.down()
	w.loseDatabase()
	path := filepath.Join(w.state, "vms", v.ID, "vm.json")
	text, err := os.ReadFile(path)
	w.must(err)
	var c map[string]any
	w.must(json.Unmarshal(text, &c))
	record := c["vm"].(map[string]any)
	for _, later := range []string{"HostKey", "MAC", "IP", "NAT", "Init"} {
		delete(record, later)
	}
	w.must(resource.WriteCopy(path, c))
	w.must(w.boot(0))
	w.must(w.wait(w.svc.Start(t.Context(), 0, "a")))
	again, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(again), "OPENSSH PRIVATE KEY") {
		t.Errorf("the copy: %s, %v", again, err)
	}
	w.clear()
	w.down()
}

// TestAdoptedDisks puts an older database back: what has been made with a newer one
// since is the VM's, and a disk too many is set aside.
func TestAdoptedDisks(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	v := w.create("a")
	w.must(w.wait(w.svc.Start(t.Context(), 0, "a")))
	w.must(w.wait(w.svc.Kill(t.Context(), 0, "a")))
	w.copyDatabase("older.db")
	w.must(w.wait(w.svc.Reset(t.Context(), 0, "a"))) // the root is another from here on
	w.must(w.wait(w.svc.Start(t.Context(), 0, "a")))
	w.must(w.wait(w.svc.Kill(t.Context(), 0, "a")))
	upper, err := filepath.Glob(filepath.Join(w.state, "vms", v.ID, "upper-*.ext4"))
	if err != nil || len(upper) != 1 {
		t.Fatal(upper, err)
	}
	w.down()
	w.loseDatabase()
	w.must(os.Rename(filepath.Join(w.state, "older.db"), filepath.Join(w.state, "banger.db")))
	stranger := filepath.Join(w.state, "vms", v.ID, "work-00000000.ext4")
	w.must(os.WriteFile(stranger, []byte("work"), 0o600))
	w.must(w.boot(0))
	w.must(w.wait(w.svc.Start(t.Context(), 0, "a")))
	if again, err := filepath.Glob(filepath.Join(w.state, "vms", v.ID, "upper-*.ext4")); err != nil || len(again) != 1 || again[0] != upper[0] {
		t.Errorf("its root is %q, want %q; %v", again, upper, err)
	}
	if aside, err := filepath.Glob(stranger + ".lost-*"); err != nil || len(aside) != 1 {
		t.Errorf("the disk too many: %q, %v", aside, err)
	}
	w.clear()
	w.down()
}

// TestRestoredSnapshot loses the database of VMs whose roots are snapshots: of what is
// known by their copies alone.
func TestRestoredSnapshot(t *testing.T) {
	w := snapshotWorld(t)
	w.must(w.boot(0))
	runs, stops := w.createSized("runs", 256<<20), w.createSized("stops", 256<<20)
	for _, err := range []error{
		w.wait(w.svc.Start(t.Context(), 0, "runs")), w.wait(w.svc.Start(t.Context(), 0, "stops")), w.wait(w.svc.Kill(t.Context(), 0, "stops")),
	} {
		w.must(err)
	}
	before := w.rows()
	w.down()
	w.loseDatabase()
	w.must(w.boot(0))
	w.agree()
	w.survived(runs, w.work(runs.ID), true)
	w.survived(stops, w.work(stops.ID), false)
	if after := w.rows(); !slices.Equal(after, before) {
		t.Errorf("the ledger has %q, it had %q", after, before)
	}
	w.must(w.wait(w.svc.Start(t.Context(), 0, "stops")))
	w.clear()
	w.down()
}

// rows are what is in the ledger, without who wrote it.
func (w *world) rows() []string {
	refs, err := w.db.Resources(context.Background(), "")
	w.must(err)
	var rows []string
	for _, r := range refs {
		rows = append(rows, fmt.Sprint(r.Owner, r.Kind, r.Name, string(r.Spec), r.State, r.BootID))
	}
	slices.Sort(rows)
	return rows
}

// TestDeathTold has VMMs die of which a daemon is the parent, of which it is not, and
// while there is none: the VM says how, as far as that is known, with its last words.
func TestDeathTold(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	v := w.create("a")
	console := filepath.Join(w.state, "vms", v.ID, "console.log")
	start := func(words string) *machine {
		t.Helper()
		w.must(w.wait(w.svc.Start(t.Context(), 0, "a")))
		f, err := os.OpenFile(console, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		w.must(err)
		_, err = f.WriteString(words)
		w.must(errors.Join(err, f.Close()))
		return w.machines.of(v.ID)
	}
	told := func(want ...string) {
		t.Helper()
		w.await("it stops", func() bool { return w.get("a").State == api.VMStopped })
		is := w.get("a").LastError
		for _, part := range want {
			if !strings.Contains(is, part) {
				t.Errorf("its last error is %q, want %q", is, part)
			}
		}
		if len(want) == 0 && is != "" {
			t.Errorf("its last error is %q, want none", is)
		}
	}
	w.must(start("one\ntwo\nthree\nkernel panic\x1b[0m\n").cmd.Process.Kill())
	told("the VMM was killed by killed", `the console ended with: "two; three; kernel panic[0m"`)

	m := start("reboot: Power down\n")
	w.must(m.power.Close())
	told()

	m = start("all is well\n") // the words of the former run are not this one's
	w.down()
	w.must(w.boot(0))
	w.must(m.cmd.Process.Kill())
	told("the VMM ended, exit status unknown, adopted", `ended with: "all is well"`)

	m = start("so far\n")
	w.down()
	w.must(m.cmd.Process.Kill())
	<-m.exited
	w.must(w.boot(0))
	told("the VMM ended while no daemon ran, exit status unknown", `ended with: "so far"`)
	w.clear()
	w.down()
}

// TestHungVMM stops a VMM in its tracks, with its agent: neither other VMs, nor lists, nor
// a restart of the daemon wait for it, and it can be ended.
func TestHungVMM(t *testing.T) {
	w := newWorld(t)
	w.must(w.boot(0))
	hung := w.create("hung")
	w.create("other")
	w.must(w.wait(w.svc.Start(t.Context(), 0, "hung")))
	m := w.machines.of(hung.ID)
	defer w.machines.hang(m)()
	w.must(m.cmd.Process.Signal(syscall.SIGSTOP))
	for range 2 {
		w.must(w.wait(w.svc.Start(t.Context(), 0, "other")))
		w.must(w.wait(w.svc.Kill(t.Context(), 0, "other")))
		if v := w.get("hung"); v.State != api.VMRunning {
			t.Errorf("it is %s", v.State)
		}
		w.down()
		w.must(w.boot(0))
	}
	w.agree()
	w.must(w.wait(w.svc.Stop(t.Context(), 0, "hung", 50*time.Millisecond, "")))
	if v := w.get("hung"); v.State != api.VMStopped {
		t.Errorf("after it was stopped it is %s", v.State)
	}
	w.clear()
	w.down()
}

// TestLacking takes from a VM that runs what cannot be put back under it: it says so,
// and a restart mends it.
func TestLacking(t *testing.T) {
	w := newWholeWorld(t, seed(t))
	w.must(w.boot(0))
	ctx := t.Context()
	v, op, err := w.svc.Create(ctx, 0, api.CreateVM{Name: "a", Start: true, Network: api.NetworkBridge})
	w.must(w.wait(op, err))
	held, err := w.ledger.Held(ctx, "vm/"+v.ID+"/run")
	w.must(err)
	names := map[string]string{}
	for _, ref := range held {
		names[ref.Kind] = ref.Name
	}
	if got := w.get("a"); got.LastError != "" {
		t.Errorf("of a VM that has everything: %q", got.LastError)
	}
	w.must(linux.DeleteLink(names[network.KindTap]))
	w.must(os.Rename(filepath.Join(w.run, names[vm.KindRunDir]), filepath.Join(w.run, "elsewhere")))
	got := w.get("a")
	for _, want := range []string{"removed its network device " + names[network.KindTap], "removed its directory of sockets " + filepath.Join(w.run, names[vm.KindRunDir]), "banger vm restart a"} {
		if !strings.Contains(got.LastError, want) {
			t.Errorf("%q is not in %q", want, got.LastError)
		}
	}
	w.must(w.wait(w.svc.Restart(ctx, 0, "a", time.Second)))
	if got := w.get("a"); got.State != api.VMRunning || got.LastError != "" {
		t.Errorf("after a restart it is %s: %q", got.State, got.LastError)
	}
	w.must(os.RemoveAll(filepath.Join(w.run, "elsewhere")))
	w.agree()
	w.clear()
	w.down()
}
