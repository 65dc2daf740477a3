package vmmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// testSuspend has a machine stand still and go on, also by the hand of a later daemon,
// and go on from its snapshot in another VMM.
func testSuspend(t *testing.T, newDriver func() vmm.Driver, boot Boot) {
	m := newMachine(t, boot)
	inst, err := newDriver().Start(t.Context(), m.Machine)
	if err != nil {
		t.Fatal(err)
	}
	conn := m.connect(t, inst)
	defer conn.Close()
	id := bootID(t, conn)
	m.checkPause(t, newDriver, inst, conn, id)

	must(t, inst.Pause(t.Context()))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := inst.Snapshot(cancelled, t.TempDir()); err == nil {
		t.Error("a snapshot was written although the context had ended")
	}
	must(t, inst.Resume(t.Context()))
	if id != bootID(t, conn) {
		t.Error("after a snapshot that came to nothing it is another boot")
	}
	must(t, inst.Pause(t.Context()))
	dir := t.TempDir()
	must(t, inst.Snapshot(t.Context(), dir))
	if used := allocated(t, dir); used > m.Memory*3/4 {
		t.Errorf("the snapshot of a machine with %d MiB, of which it used some, takes %d MiB", m.Memory>>20, used>>20)
	}
	notExited(t, inst)
	m.kill(t)
	awaitExit(t, inst)

	m.checkDamaged(t, newDriver(), dir)
	m.newRun(t)
	restored, err := newDriver().Restore(t.Context(), m.Machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.RemoveAll(dir))
	if pids := m.pids(t); !slices.Equal(pids, []int{restored.PID()}) {
		t.Errorf("the cgroup holds %v, PID says %d", pids, restored.PID())
	}
	m.checkConfined(t, restored.PID())
	must(t, restored.Resume(t.Context()))
	back := m.connect(t, restored)
	defer back.Close()
	if bootID(t, back) != id {
		t.Error("what was restored is another boot")
	}
	m.kill(t)
	awaitExit(t, restored)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bootID tells one boot of a guest from another: to the nanosecond, when its agent began.
func bootID(t *testing.T, conn *guest.Conn) string {
	t.Helper()
	greeting, err := conn.Configure(t.Context(), wire.Configure{})
	if err != nil || greeting.Started <= 0 {
		t.Fatalf("the agent: %+v, %v", greeting, err)
	}
	return fmt.Sprint(greeting.Started)
}

// checkPause finds a paused machine silent, and well when a later daemon has had it go
// on, with the connection that it had.
func (m *machine) checkPause(t *testing.T, newDriver func() vmm.Driver, inst vmm.Instance, conn *guest.Conn, id string) {
	t.Helper()
	must(t, inst.Pause(t.Context()))
	must(t, inst.Pause(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if greeting, err := conn.Configure(ctx, wire.Configure{}); err == nil {
		t.Errorf("the agent of a paused machine answers: %+v", greeting)
	}
	later, err := newDriver().Attach(t.Context(), m.Machine)
	if err != nil {
		t.Fatal("attach to a paused machine:", err)
	}
	defer later.Close()
	must(t, later.Resume(t.Context()))
	must(t, later.Resume(t.Context()))
	if got := bootID(t, conn); got != id {
		t.Error("what went on is another boot")
	}
}

// checkDamaged tries snapshots of which something is missing or is not what it was.
func (m *machine) checkDamaged(t *testing.T, d vmm.Driver, dir string) {
	t.Helper()
	for name, damage := range map[string]func(path string, size int64) error{
		"truncated": func(path string, size int64) error { return os.Truncate(path, size*2/3) },
		"empty":     func(path string, size int64) error { return os.Truncate(path, 0) },
		"missing":   func(path string, _ int64) error { return os.Remove(path) },
		"altered": func(path string, size int64) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("this was something else"), size/2)
			return err
		},
	} {
		m.newRun(t)
		damaged := t.TempDir()
		must(t, os.CopyFS(damaged, os.DirFS(dir)))
		must(t, vmm.Snapshot{}.Seal(damaged))
		path, size := largest(t, damaged)
		must(t, damage(path, size))
		if _, err := vmm.OpenSnapshot(damaged); err == nil {
			t.Errorf("a snapshot seems whole whose largest file is %s", name)
		}
		if name == "altered" && d.Name() == "firecracker" { // which reads memory when the guest does
			continue
		}
		must(t, os.Remove(filepath.Join(damaged, "snapshot.json")))
		_, err := d.Restore(t.Context(), m.Machine, damaged)
		if err == nil {
			t.Errorf("a snapshot was restored whose largest file is %s", name)
		}
		t.Logf("%s: %v", name, err)
		if pids := m.pids(t); len(pids) != 0 {
			t.Fatalf("%s: processes %v are left", name, pids)
		}
	}
}

// newRun gives a machine what another run of it needs: an empty directory, and a cgroup
// in which nothing was killed, since a kernel may kill what is born in one where that was.
func (m *machine) newRun(t *testing.T) {
	t.Helper()
	var err error
	m.RunDir, err = os.MkdirTemp(filepath.Dir(m.RunDir), "run")
	must(t, err)
	m.Cgroup, m.cgroup = NewCgroup(t)
}

func largest(t *testing.T, dir string) (path string, size int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if info.Size() >= size {
			path, size = filepath.Join(dir, e.Name()), info.Size()
		}
	}
	return path, size
}

// allocated is what the files of a directory take, in bytes.
func allocated(t *testing.T, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		used, err := linux.Allocated(filepath.Join(dir, e.Name()))
		must(t, err)
		n += used
	}
	return n
}
