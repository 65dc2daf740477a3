// Package e2e tests banger as users meet it: the command line, a daemon and
// real machines. The tests need root and the fixture; make test provides both.
package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// TestMachine runs what needs nothing but one machine on one installation.
func TestMachine(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--", "true")

	t.Run("exit status", func(t *testing.T) { exitStatus(t, h) })
	t.Run("streams", func(t *testing.T) { streams(t, h) })
	t.Run("signals", func(t *testing.T) { signals(t, h) })
	t.Run("large input", func(t *testing.T) { largeInput(t, h) })
	t.Run("terminal", func(t *testing.T) { terminal(t, h) })
	t.Run("inside", func(t *testing.T) { inside(t, h) })
	t.Run("names", func(t *testing.T) { names(t, h) })
	t.Run("console flooded", func(t *testing.T) { consoleFlooded(t, h) })
	t.Run("daemon killed", func(t *testing.T) { daemonKilled(t, h) })
	t.Run("stop and start", func(t *testing.T) { stopStart(t, h) })

	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}

func exitStatus(t *testing.T, h *hosttest.Host) {
	for _, test := range []struct {
		script string
		want   int
	}{
		{"exit 0", 0},
		{"exit 1", 1},
		{"exit 42", 42},
		{"kill -TERM $$", 128 + int(syscall.SIGTERM)},
		{"kill -KILL $$", 128 + int(syscall.SIGKILL)},
		{"kill -SEGV $$", 128 + int(syscall.SIGSEGV)},
	} {
		if r := h.Banger(t, "vm", "exec", "m", "--", "sh", "-c", test.script); r.Exit != test.want {
			t.Errorf("%s: exit status %d, want %d\n%s", test.script, r.Exit, test.want, r.Stderr)
		}
	}
	// Statuses that shells use: a command that is not there, and one that is no program.
	for command, want := range map[string]int{"no-such-command": 127, "/etc/passwd": 126} {
		r := h.Banger(t, "vm", "exec", "m", "--", command)
		if r.Exit != want || !strings.Contains(r.Stderr, command) {
			t.Errorf("%s: exit status %d, want %d; stderr %q should name it", command, r.Exit, want, r.Stderr)
		}
	}
}

func streams(t *testing.T, h *hosttest.Host) {
	r := h.Pipe(t, "data\n", "vm", "exec", "m", "--", "sh", "-c", "cat; echo to-stderr >&2")
	if r.Stdout != "data\n" || r.Stderr != "to-stderr\n" || r.Exit != 0 {
		t.Errorf("got stdout %q, stderr %q, exit status %d", r.Stdout, r.Stderr, r.Exit)
	}
	// Arguments arrive as they were given: no shell reads them on the way.
	args := []string{"a b", "", `"quoted"`, "$HOME", "*", "-x", "ü\n"}
	r = h.Banger(t, append([]string{"vm", "exec", "m", "--", "printf", `<%s>`}, args...)...)
	if want := "<" + strings.Join(args, "><") + ">"; r.Stdout != want {
		t.Errorf("arguments arrived as %q, want %q", r.Stdout, want)
	}
}

// signals checks that what the command line is sent reaches the command.
func signals(t *testing.T, h *hosttest.Host) {
	for name, signal := range map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM} {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
		script := fmt.Sprintf("trap 'exit 5' %s; echo ready; while :; do sleep 0.1; done", name)
		out := &buffer{}
		cmd := h.Command(ctx, "vm", "exec", "m", "--", "sh", "-c", script)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.await(t, "ready")
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the exit status is looked at
		if got := cmd.ProcessState.ExitCode(); got != 5 {
			t.Errorf("SIG%s: exit status %d, want 5\n%s", name, got, out)
		}
		cancel()
	}
}

// inside looks at what the guest finds itself in.
func inside(t *testing.T, h *hosttest.Host) {
	for command, want := range map[string]string{
		"hostname":                         "m",
		"stat -f -c %T /":                  "overlayfs",
		"stat -f -c %T /proc":              "proc",
		"stat -f -c %T /sys/fs/cgroup":     "cgroup2fs",
		"test -d /lib/modules/$(uname -r)": "",
		"test -w /tmp && test -w /dev/shm": "",
		"id -u":                            "0",
	} {
		if got := h.Must(t, "vm", "exec", "m", "--", "sh", "-c", command); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	seconds, err := strconv.ParseInt(h.Must(t, "vm", "exec", "m", "--", "date", "+%s"), 10, 64)
	if off := time.Since(time.Unix(seconds, 0)).Abs(); err != nil || off > time.Minute {
		t.Errorf("the guest's clock is off by %v (%v)", off, err)
	}
	// PID 1 buries what others leave behind.
	orphans := "for i in 1 2 3 4 5; do (sleep 0.2 &) ; done; while pidof sleep >/dev/null; do sleep 0.1; done; sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status"
	if r := h.Banger(t, "vm", "exec", "m", "--", "sh", "-c", orphans); r.Stdout != "" {
		t.Errorf("zombies in the guest: %s", r.Stdout)
	}
}

// names checks the three ways to name a VM.
func names(t *testing.T, h *hosttest.Host) {
	id := h.VMs(t)[0]
	for _, ref := range []string{"m", id, id[:6]} {
		if got := h.Must(t, "vm", "exec", ref, "--", "hostname"); got != "m" {
			t.Errorf("exec in %s ran in %s", ref, got)
		}
		if show := h.Must(t, "vm", "show", ref); !strings.Contains(show, id) {
			t.Errorf("show %s does not show id %s:\n%s", ref, id, show)
		}
	}
}

// daemonKilled kills the daemon under a command that writes.
func daemonKilled(t *testing.T, h *hosttest.Host) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var want strings.Builder
	for i := range 40 {
		fmt.Fprintln(&want, i)
	}
	out, errs := &buffer{}, &buffer{}
	cmd := h.Command(ctx, "vm", "exec", "m", "--", "sh", "-c", "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.25; done; exit 9")
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "3\n")
	before := h.DaemonPID()
	h.KillDaemon(t)

	if got := h.Must(t, "vm", "exec", "m", "--", "echo", "again"); got != "again" {
		t.Errorf("exec after the daemon's death: %q", got)
	}
	if after := h.DaemonPID(); after == before || after == 0 {
		t.Errorf("daemon %d before, %d after", before, after)
	}
	_ = cmd.Wait() // the exit status is looked at
	if got := cmd.ProcessState.ExitCode(); got != 9 || out.String() != want.String() {
		t.Errorf("the exec in flight: exit status %d, want 9; output %q\nstderr %s", got, out, errs)
	}
}

func stopStart(t *testing.T, h *hosttest.Host) {
	h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "echo kept >/srv/file; chmod 4711 /srv/file; echo too >/root/file")
	h.Must(t, "vm", "stop", "m")
	if r := h.Banger(t, "vm", "exec", "m", "--", "true"); r.Exit != exitConflict || !strings.Contains(r.Stderr, "vm start") {
		t.Errorf("exec in a stopped VM: exit status %d, want %d and a hint\n%s", r.Exit, exitConflict, r.Stderr)
	}
	h.Must(t, "vm", "start", "m")
	if got := h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "cat /srv/file /root/file; stat -c %a /srv/file"); got != "kept\ntoo\n4711" {
		t.Errorf("after stop and start: %q", got)
	}
	if logs := h.Must(t, "vm", "logs", "m"); !strings.Contains(logs, "reboot: Power down") {
		t.Errorf("the console does not show how the machine was powered off:\n%s", logs)
	}
}

// Eight VMs are created at once, by as many command lines that find no daemon.
func TestManyAtOnce(t *testing.T) {
	h := hosttest.NewSeeded(t)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			r := h.Banger(t, "vm", "run", "--rm", "--memory", "192M", "--", "sh", "-c", "echo $((6*7))")
			if r.Exit != 0 || r.Stdout != "42\n" {
				t.Errorf("VM %d: exit status %d, stdout %q\n%s", i, r.Exit, r.Stdout, r.Stderr)
			}
		})
	}
	group.Wait()
	nothingLeft(t, h)
}

// A VM of run --rm goes with its command line, also when that is killed; and it
// carries the command's exit status when it is not.
func TestRunRemove(t *testing.T) {
	h := hosttest.NewSeeded(t)
	if r := h.Banger(t, "vm", "run", "--rm", "--", "sh", "-c", "exit 42"); r.Exit != 42 {
		t.Errorf("exit status %d, want 42\n%s", r.Exit, r.Stderr)
	}
	nothingLeft(t, h)

	out := &buffer{}
	cmd := h.Command(t.Context(), "vm", "run", "--rm", "--", "sh", "-c", "echo running; exec sleep 1000")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "running")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	hosttest.Eventually(t, 30*time.Second, "the VM of a killed command line is deleted", func() bool {
		return len(h.VMs(t)) == 0
	})
	nothingLeft(t, h)
}

// The daemon is killed between create and delete; what it knew, the next knows.
func TestDeleteAfterDaemonKilled(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "gone", "--", "true")
	h.KillDaemon(t)
	h.Must(t, "vm", "delete", "--force", "gone")
	nothingLeft(t, h)
}
