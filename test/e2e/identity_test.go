package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
)

// TestIdentity has an installation lose its identity, be copied while a VM runs, be
// served a second time, and be started in another network namespace: each is
// recognised, and the VM runs on through all of it.
func TestIdentity(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--", "true")
	before := show(t, h, "m")
	same := func(when string) {
		t.Helper()
		if after := show(t, h, "m"); after.PID != before.PID || after.State != api.VMRunning || after.IP != before.IP {
			t.Errorf("%s: it was %+v and is %+v", when, before, after)
		}
		if got := h.Must(t, "vm", "exec", "m", "--", "echo", "here"); got != "here" {
			t.Errorf("%s: the VM says %q", when, got)
		}
	}
	identity := filepath.Join(h.Paths.State, "installation.json")
	h.KillDaemon(t)
	remove(t, identity)
	same("without installation.json")
	h.KillDaemon(t)
	garble(t, identity)
	same("with installation.json garbled")

	// A second daemon is refused, with the pid of the first.
	daemon := h.DaemonPID()
	second := exec.Command(filepath.Join(filepath.Dir(h.Program()), "bangerd"))
	second.Env = append(os.Environ(), h.Env()...)
	if r := hosttest.Run(t, h.Enter(second), ""); r.Exit == 0 || !strings.Contains(r.Stderr, strconv.Itoa(daemon)) {
		t.Errorf("a second daemon: exit status %d, want that it names process %d\n%s", r.Exit, daemon, r.Stderr)
	}

	// From another network namespace nothing is taken for gone.
	h.StopDaemon(t)
	elsewhere := h.Command(t.Context(), "vm", "list")
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.Path, elsewhere.Args = unshare, append([]string{"unshare", "--net"}, elsewhere.Args...)
	if r := hosttest.Run(t, elsewhere, ""); r.Exit == 0 || !strings.Contains(r.Stderr, "network namespace") || !strings.Contains(r.Stderr, "nsenter") {
		t.Errorf("in another network namespace: exit status %d\n%s", r.Exit, r.Stderr)
	}
	same("after a daemon in another network namespace")

	// A copy is another installation, which leaves the first one's VM alone.
	h.StopDaemon(t)
	c := hosttest.New(t)
	if out, err := exec.Command("cp", "-a", "--sparse=always", h.Paths.State, c.Paths.State).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if v := show(t, c, "m"); v.ID != before.ID || v.State != api.VMStopped {
		t.Errorf("the copy has %+v", v)
	}
	same("beside a copy")
	if ours, theirs := id(t, h), id(t, c); ours == theirs {
		t.Errorf("both installations are %s", ours)
	}
	c.Must(t, "vm", "delete", "--force", "m")
	if ids := c.VMs(t); len(ids) > 0 { // what is left on the host is looked for when the first one's VM is gone too
		t.Errorf("the copy has %v", ids)
	}
	same("after the copy's was deleted")
	if err := syscall.Kill(before.PID, 0); errors.Is(err, syscall.ESRCH) {
		t.Error("its VMM has ended")
	}
	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}

// id is what an installation is called.
func id(t *testing.T, h *hosttest.Host) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Paths.State, "installation.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text[:len(`{"id":"01234567"`)])
}
