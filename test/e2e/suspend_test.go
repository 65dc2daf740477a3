package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// TestSuspend has a VM stand still and go on while a command runs in it, over deaths of
// the daemon. The command's output is whole, its guest knows the time and is on the
// network, and a snapshot of which something is missing is not gone on from.
func TestSuspend(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--", "sh", "-c", "echo kept >/run/memory")
	before := show(t, h, "m")
	out, said := &buffer{}, &buffer{}
	count := h.Command(t.Context(), "vm", "exec", "m", "--", "sh", "-c", `i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i; sleep 0.1; done; echo end`)
	count.Stdout, count.Stderr = out, said
	if err := count.Start(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "\n3\n")
	further := func(what string) {
		t.Helper()
		lines := strings.Count(out.String(), "\n")
		out.await(t, "\n"+strconv.Itoa(lines+5)+"\n")
		if got := h.Must(t, "vm", "exec", "m", "--", "cat", "/run/memory"); got != "kept" {
			t.Errorf("%s: its memory has %q", what, got)
		}
		// A closed port answers; what is not on the network does not.
		if _, err := net.DialTimeout("tcp", before.IP+":9", 10*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: its address: %v", what, err)
		}
	}

	h.Must(t, "vm", "pause", "m")
	h.KillDaemon(t)
	if v := show(t, h, "m"); v.State != api.VMPaused || v.PID != before.PID {
		t.Errorf("paused, and the daemon has died: %+v", v)
	}
	h.Must(t, "vm", "resume", "m")
	further("resumed")

	h.Must(t, "vm", "exec", "m", "--", "date", "-s", "@86400")
	h.Must(t, "vm", "suspend", "m")
	h.KillDaemon(t)
	v := show(t, h, "m")
	if v.State != api.VMSuspended || v.PID != 0 || v.IP != before.IP {
		t.Errorf("suspended, and the daemon has died: %+v", v)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", before.PID)); err == nil && len(text) > 0 { // a zombie has none
		t.Errorf("its VMM lives: %q", text)
	}
	h.Must(t, "vm", "start", "m")
	further("woken")
	now, err := strconv.ParseInt(h.Must(t, "vm", "exec", "m", "--", "date", "+%s"), 10, 64)
	if err != nil || time.Since(time.Unix(now, 0)).Abs() > time.Hour {
		t.Errorf("its clock says %v, %v", time.Unix(now, 0), err)
	}
	h.Must(t, "vm", "exec", "m", "--", "touch", "/tmp/stop")
	if err := count.Wait(); err != nil {
		t.Errorf("the command that lived through it: %v\n%s", err, said)
	}
	for i, line := range strings.Split(strings.TrimSuffix(out.String(), "\nend\n"), "\n") {
		if line != strconv.Itoa(i+1) {
			t.Errorf("line %d of it is %q", i+1, line)
			break
		}
	}

	h.Must(t, "vm", "suspend", "m")
	states, err := filepath.Glob(filepath.Join(h.Paths.State, "suspended", before.ID+"-*", "state"))
	if err != nil || len(states) != 1 {
		t.Fatal(states, err)
	}
	info, err := os.Stat(states[0])
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() > before.Memory {
		t.Errorf("its memory on the disk: %v, %v", info, err)
	}
	spoil(t, states[0], info)
	r := h.Banger(t, "vm", "start", "m")
	if !strings.Contains(r.Stderr, "damaged") || !strings.Contains(r.Stderr, "banger vm start --cold m") || show(t, h, "m").State != api.VMSuspended {
		t.Errorf("woken from a snapshot that is damaged: %+v", r)
	}
	h.Must(t, "vm", "start", "--cold", "m")
	if r := h.Banger(t, "vm", "exec", "m", "--", "cat", "/run/memory"); r.Exit == 0 {
		t.Errorf("after a cold start its memory has %q", r.Stdout)
	}
	h.Must(t, "vm", "suspend", "m")
	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}

// spoil changes a byte in the midst of a file, of which nothing else tells.
func spoil(t *testing.T, path string, info os.FileInfo) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.Chtimes(path, time.Time{}, info.ModTime())); err != nil {
		t.Fatal(err)
	}
}
