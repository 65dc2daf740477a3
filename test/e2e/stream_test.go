package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/hosttest"

	"github.com/creack/pty"
)

// buffer is output that is looked at while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await waits for a text in the output.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	end := time.Now().Add(10 * time.Minute)
	for !strings.Contains(b.String(), text) {
		if time.Now().After(end) {
			t.Fatalf("no %q in the output:\n%s", text, b)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// largeInput sends 64 MiB through cat, there and back.
func largeInput(t *testing.T, h *hosttest.Host) {
	const size = 64 << 20
	sent, received := sha256.New(), &sink{Hash: sha256.New()}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	errs := &buffer{}
	cmd := h.Command(ctx, "vm", "exec", "m", "--", "cat")
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	cmd.Stdout, cmd.Stderr = received, errs
	start := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("cat: %v\n%s", err, errs)
	}
	if received.n != size || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Errorf("%d bytes came back of %d, or others than were sent", received.n, size)
	}
	t.Logf("%.1f MiB/s there and back", size/float64(1<<20)/time.Since(start).Seconds())
}

// sink counts and hashes.
type sink struct {
	hash.Hash
	n int64
}

func (s *sink) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.Hash.Write(p)
}

// interruptSleep presses Ctrl-C on a terminal until a shell there answers again: the
// first one is lost where the shell is about to start the command.
func interruptSleep(t *testing.T, h *hosttest.Host, vm string, send func(string), out *buffer) {
	t.Helper()
	// A shell that is interrupted while it starts a program forgets it, and waits for it later.
	hosttest.Eventually(t, 30*time.Second, "sleep runs", func() bool {
		return h.Banger(t, "vm", "exec", vm, "--", "sh", "-c", `cat /proc/[0-9]*/cmdline | tr '\0' ' ' | grep -q 'sleep 100[0]'`).Exit == 0
	})
	var pressed time.Time
	hosttest.Eventually(t, 30*time.Second, "Ctrl-C ends sleep", func() bool {
		if time.Since(pressed) > 3*time.Second {
			send("\x03")
			pressed = time.Now()
		}
		send("echo interrupted $((40+6))\r")
		return strings.Contains(out.String(), "interrupted 46")
	})
}

// terminal drives the command line on a terminal of its own.
func terminal(t *testing.T, h *hosttest.Host) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, "vm", "exec", "-it", "m", "--", "sh")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	out := &buffer{}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, tty)
		copied <- err
	}()
	send := func(line string) {
		t.Helper()
		if _, err := io.WriteString(tty, line); err != nil {
			t.Fatal(err)
		}
	}

	// The terminal echoes what is typed, so what is awaited must not be in it.
	send("echo size $(stty size) $((40+2))\r")
	out.await(t, "size 24 80 42")
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 31, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	send("while [ \"$(stty size)\" != '31 101' ]; do sleep 0.1; done; echo resized $((40+3))\r")
	out.await(t, "resized 43")
	send("tty; echo $((40+4))\r")
	out.await(t, "/dev/pts/")
	out.await(t, "44")
	// Ctrl-C ends the command, not the session. The shell drops what it had read
	// of its input when the signal came, so the question is repeated.
	send("echo asleep $((40+5)); sleep 1000\r")
	out.await(t, "asleep 45")
	interruptSleep(t, h, "m", send, out)
	send("exit 7\r")
	err = cmd.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 7 {
		t.Errorf("exit status: %v, want 7\n%s", err, out)
	}
	// Linux reports the end of a terminal's other side as an I/O error.
	tty.Close()
	if err := <-copied; err != nil && !errors.Is(err, syscall.EIO) && !strings.Contains(err.Error(), "closed") {
		t.Error(err)
	}
}
