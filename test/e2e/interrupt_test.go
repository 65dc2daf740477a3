package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/bootstrap"
	"banger/internal/hosttest"

	"github.com/creack/pty"
)

// A signal is never lost, whatever the command line is at.
func TestInterrupts(t *testing.T) {
	h := hosttest.NewSeeded(t)
	t.Run("before the command", func(t *testing.T) { interruptBoot(t, h) })
	h.Must(t, "vm", "run", "--name", "m")
	t.Run("at the hand-over", func(t *testing.T) { interruptHandOver(t, h) })
	t.Run("looking on", func(t *testing.T) { interruptLooking(t, h) })
	t.Run("daemon hangs", func(t *testing.T) { interruptHung(t, h) })
	t.Run("daemon hangs under a command", func(t *testing.T) { interruptHungCommand(t, h) })
	t.Run("daemon hangs under a terminal", func(t *testing.T) { interruptHungTerminal(t, h) })
	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}

// begun is a command line under way.
type begun struct {
	*exec.Cmd
	out *buffer
}

func begin(t *testing.T, h *hosttest.Host, args ...string) begun {
	t.Helper()
	return beginFor(t, h, 15*time.Minute, args...)
}

func beginFor(t *testing.T, h *hosttest.Host, patience time.Duration, args ...string) begun {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	b := begun{h.Command(ctx, args...), &buffer{}}
	b.Stdout, b.Stderr = b.out, b.out
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b begun) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := b.Process.Signal(s); err != nil {
		t.Error(err)
	}
}

// ends checks the exit status and what was said at last.
func (b begun) ends(t *testing.T, status int, says string) {
	t.Helper()
	_ = b.Wait() // the exit status is looked at
	if got := b.ProcessState.ExitCode(); got != status || !strings.HasSuffix(b.out.String(), says) {
		t.Errorf("%v: exit status %d, want %d; output %q, want %q at its end", b.Args[1:], got, status, b.out, says)
	}
}

func interruptBoot(t *testing.T, h *hosttest.Host) {
	for signal, status := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		b := begin(t, h, "vm", "run", "--name", "early", "--", "sleep", "1000")
		hosttest.Eventually(t, time.Minute, "a VM boots", func() bool {
			return strings.Contains(h.Must(t, "vm", "list"), "starting")
		})
		b.signal(t, signal)
		b.ends(t, status, "banger: interrupted\n")
		if got := h.VMs(t); len(got) != 0 {
			t.Errorf("after %v there are VMs %v", signal, got)
		}
	}
}

// interruptHandOver sends signals at many points of the way to a running command:
// it ends each time, by banger's word or by the signal in the guest.
func interruptHandOver(t *testing.T, h *hosttest.Host) {
	for after := time.Duration(0); after < 240*time.Millisecond; after += 12 * time.Millisecond {
		b := begin(t, h, "vm", "exec", "m", "--", "sleep", "1000")
		time.Sleep(after)
		b.signal(t, syscall.SIGTERM)
		_ = b.Wait()                                                 // the exit status is looked at
		byGo := b.ProcessState.Sys().(syscall.WaitStatus).Signaled() // before main began
		if got := b.ProcessState.ExitCode(); got != 143 && !byGo {
			t.Errorf("SIGTERM after %v: exit status %d, want 143\n%s", after, got, b.out)
		}
	}
}

// interruptLooking ends what goes on until it is interrupted: that is as it should be,
// and nothing is said of it.
func interruptLooking(t *testing.T, h *hosttest.Host) {
	for _, test := range []struct{ args, shows string }{{"vm logs --follow m", "\n"}, {"vm stats --watch m", "MEMORY"}} {
		b := begin(t, h, strings.Fields(test.args)...)
		b.out.await(t, test.shows)
		b.signal(t, syscall.SIGINT)
		b.ends(t, 130, "")
		if strings.Contains(b.out.String(), "banger:") {
			t.Errorf("%s, interrupted, says %q", test.args, b.out)
		}
	}
}

// freeze stops the daemon from doing anything until the test has ended.
func freeze(t *testing.T, h *hosttest.Host) {
	t.Helper()
	pid := h.DaemonPID()
	if pid == 0 {
		t.Fatal("no daemon answers")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	// On a busy host one thread may answer while another one has yet to take the signal.
	hosttest.Eventually(t, 30*time.Second, "the daemon stands still", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is in order
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(stat string) bool {
			text, _ := os.ReadFile(stat) // it may have ended
			_, state, _ := strings.Cut(string(text), ") ")
			return !strings.HasPrefix(state, "T")
		})
	})
}

func interruptHung(t *testing.T, h *hosttest.Host) {
	freeze(t, h)
	b := begin(t, h, "vm", "list")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("it said %q", b.out)
		}
	})
	hosttest.Eventually(t, 30*time.Second, "the command line has connected", func() bool {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", b.Process.Pid)) // the pattern is in order
		return slices.ContainsFunc(open, func(fd string) bool {
			to, _ := os.Readlink(fd) // it may be closed meanwhile
			return strings.HasPrefix(to, "socket:")
		})
	})
	b.signal(t, syscall.SIGINT)
	b.ends(t, 130, "banger: interrupted\n")
}

func interruptHungCommand(t *testing.T, h *hosttest.Host) {
	b := begin(t, h, "vm", "exec", "m", "--", "sh", "-c", "trap '' INT; echo ready; sleep 30")
	b.out.await(t, "ready")
	freeze(t, h)
	for range 3 {
		b.signal(t, syscall.SIGINT)
		time.Sleep(200 * time.Millisecond) // signals that wait are merged
	}
	b.ends(t, 130, "banger: interrupted\n")
}

func interruptHungTerminal(t *testing.T, h *hosttest.Host) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, "vm", "exec", "-it", "m", "--", "sh")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	out := &buffer{}
	go func() { _, _ = io.Copy(out, tty) }() // until the terminal is gone
	if _, err := io.WriteString(tty, "echo ready $((40+2))\r"); err != nil {
		t.Fatal(err)
	}
	out.await(t, "ready 42")
	freeze(t, h)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // the exit status is looked at
	}()
	for {
		_, _ = io.WriteString(tty, "\x03") // the other side may have gone
		select {
		case <-ended:
			if got := cmd.ProcessState.ExitCode(); got != 130 {
				t.Errorf("exit status %d, want 130\n%s", got, out)
			}
			return
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// What is under way to get an image is interrupted as a whole and leaves nothing; then
// it is got.
func TestInterruptOnDemand(t *testing.T) {
	if bootstrap.Host() == "" {
		t.Skip("banger can make no image of this host's distribution")
	}
	tmp := t.TempDir()
	h := hosttest.New(t, "TMPDIR="+tmp)
	h.OnMachine(t) // where the distribution's packages come from
	b := begin(t, h, "vm", "run", "--rm", "--image", bootstrap.Host(), "--", "true")
	b.out.await(t, "bootstrap")
	b.signal(t, syscall.SIGTERM)
	start := time.Now()
	b.ends(t, 143, "banger: interrupted\n")
	if took := time.Since(start); took > 2*time.Minute {
		t.Errorf("it took %v", took)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if images := h.Must(t, "image", "list", "--quiet"); images != "" {
		t.Errorf("an image was made: %s", images)
	}
	nothingLeft(t, h)
	onDemand(t, h)
}

// onDemand has an installation with nothing in it run a command: it gets image and
// kernel, says so in plain lines, and the image has nothing of this host.
func onDemand(t *testing.T, h *hosttest.Host) {
	image := bootstrap.Host()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, "vm", "run", "--rm", "--net", "none", "--image", image, "--", "sh", "-c", "ls /etc/resolv.conf; echo done; exit 42")
	r := hosttest.Run(t, cmd, "")
	if r.Exit != 42 || r.Stdout != "done\n" {
		t.Errorf("exit status %d, output %q", r.Exit, r.Stdout)
	}
	for _, line := range []string{"bootstrap " + image + ": ", "image " + image + " ", "kernel ", "ls: cannot access '/etc/resolv.conf'"} {
		if !strings.Contains("\n"+r.Stderr, "\n"+line) {
			t.Errorf("no line %q...", line)
		}
	}
	if lines := strings.Count(r.Stderr, "\n"); lines > 60 || strings.ContainsAny(r.Stderr, "\r\x1b") {
		t.Errorf("%d lines, which should be plain and few", lines)
	}
	if t.Failed() {
		t.Logf("it says:\n%s", r.Stderr)
	}
	nothingLeft(t, h)
}
