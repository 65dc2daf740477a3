package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

// TestRecovery damages every copy of what banger knows, one after the other, while a VM
// runs and the daemon is dead: the VM goes on each time, and leaves nothing at its end.
func TestRecovery(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--", "sh", "-c", "echo kept >/srv/file; echo too >/root/file")
	images, kernels := h.Must(t, "image", "list", "--quiet"), h.Must(t, "kernel", "list", "--quiet")
	before := show(t, h, "m")
	handles := filepath.Join(h.Paths.State, "vms", before.ID, "handles.json")
	database := filepath.Join(h.Paths.State, "banger.db")
	for _, tc := range []struct {
		name  string
		do    func(t *testing.T)
		aside string
	}{
		{"handles.json is garbage", func(t *testing.T) { garble(t, handles) }, handles},
		{"the database is garbage", func(t *testing.T) { garble(t, database); dropJournal(t, database) }, database},
		{"the database is cut off", func(t *testing.T) {
			h.VMs(t) // starts a daemon, which moves the journal into it at its end
			h.StopDaemon(t)
			if info, err := os.Stat(database); err != nil || os.Truncate(database, info.Size()/2) != nil {
				t.Fatal(err)
			}
		}, database},
		{"the database is gone, its journal is not", func(t *testing.T) {
			remove(t, database)
			if err := os.WriteFile(database+"-wal", []byte("what was written last"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, database + "-wal"},
		{"database and network.json are gone", func(t *testing.T) {
			remove(t, database)
			dropJournal(t, database)
			remove(t, filepath.Join(h.Paths.State, "network.json"))
		}, ""},
	} {
		h.KillDaemon(t)
		aside := asides(t, tc.aside)
		tc.do(t)
		if got := h.Must(t, "vm", "exec", "m", "--", "cat", "/srv/file", "/root/file"); got != "kept\ntoo" {
			t.Errorf("%s: the VM has %q", tc.name, got)
		}
		after := show(t, h, "m")
		if after.ID != before.ID || after.PID != before.PID || after.IP != before.IP || after.MAC != before.MAC || after.State != api.VMRunning {
			t.Errorf("%s: it was %+v and is %+v", tc.name, before, after)
		}
		// A closed port answers; what is not on the network does not.
		if _, err := net.DialTimeout("tcp", after.IP+":9", 10*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: its address: %v", tc.name, err)
		}
		if i, k := h.Must(t, "image", "list", "--quiet"), h.Must(t, "kernel", "list", "--quiet"); i != images || k != kernels {
			t.Errorf("%s: images %q, were %q; kernels %q, were %q", tc.name, i, images, k, kernels)
		}
		if tc.aside != "" && asides(t, tc.aside) != aside+1 {
			t.Errorf("%s: nothing is set aside as %s.lost-*", tc.name, tc.aside)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if lost, err := filepath.Glob(filepath.Join(h.Paths.State, "lost-*")); err != nil || len(lost) > 0 {
		t.Errorf("set aside: %q, %v", lost, err)
	}
	h.Must(t, "vm", "stop", "m")
	if _, err := os.Stat(handles); !os.IsNotExist(err) {
		t.Errorf("handles.json of a stopped VM: %v", err)
	}
	h.Must(t, "vm", "start", "m")
	if got := h.Must(t, "vm", "exec", "m", "--", "cat", "/srv/file", "/root/file"); got != "kept\ntoo" {
		t.Errorf("after stop and start it has %q", got)
	}
	// A VMM that hangs keeps neither the daemon nor its successor from their work.
	pid := show(t, h, "m").PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := h.Must(t, "vm", "list", "--quiet"); got != before.ID {
			t.Errorf("listed: %q", got)
		}
		h.StopDaemon(t)
	}
	h.Must(t, "vm", "create", "--name", "other")
	h.Must(t, "vm", "stop", "--timeout", "1s", "m")
	if v := show(t, h, "m"); v.State != api.VMStopped {
		t.Errorf("the one that hung is %s", v.State)
	}
	h.Must(t, "vm", "delete", "m", "other")
	nothingLeft(t, h)
}

// asides is how often a file was set aside.
func asides(t *testing.T, file string) int {
	t.Helper()
	found, err := filepath.Glob(file + ".lost-*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range found {
		if !strings.HasSuffix(f, "-wal") && !strings.HasSuffix(f, "-shm") {
			n++
		}
	}
	return n
}

// garble overwrites a file with noise of its size.
func garble(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, info.Size())
	rand.Read(noise)
	if err := os.WriteFile(file, noise, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// dropJournal removes what a killed daemon has not moved into its database yet.
func dropJournal(t *testing.T, database string) {
	t.Helper()
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.RemoveAll(database + suffix); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDaemonThatIsDying has a command meet the lock of a daemon that answers no more and
// takes a while to be gone: it starts the next one then.
func TestDaemonThatIsDying(t *testing.T) {
	h := hosttest.New(t)
	if err := os.MkdirAll(h.Paths.State, 0o711); err != nil {
		t.Fatal(err)
	}
	lock, _, err := linux.Lock(h.Paths.Lock(), fmt.Sprintf("1\n%s\n", h.Paths.Run))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(1500*time.Millisecond, func() { _ = lock.Close() })
	h.Must(t, "vm", "list")
	nothingLeft(t, h)
}
