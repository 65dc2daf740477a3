// Package hosttest runs banger the way a user does, for tests: an installation
// of its own in directories of its own, the real command line, a real daemon.
// At the end of a test it looks for whatever the installation has left on the
// host, and fails the test that leaves something.
package hosttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/config"
	"banger/internal/linux"
)

// commandTimeout is how long a command may take: a boot without hardware
// virtualization, with others beside it, on a machine that is slow.
const commandTimeout = 15 * time.Minute

// slowness is how much slower than a quiet machine one may be on which tests pass.
const slowness = 6

// Host is an installation of banger on this host.
type Host struct {
	Paths config.Paths

	machine *linux.NetNS // the machine's own network, where the test is to have it
	bin     string       // the directory of the programs
	env     []string     // besides that of the test
}

// Result is what a command did.
type Result struct {
	Stdout, Stderr string
	Exit           int // -1: killed
}

// New makes an installation without kernel and image, and removes it at the end
// of t after looking for what it has left. It skips t where there is nothing to
// run or no right to run it. Env, as "NAME=value", is added to the environment
// of every command and with it of the daemon.
func New(t testing.TB, env ...string) *Host {
	t.Helper()
	bin := os.Getenv("BANGER_BIN")
	if bin == "" {
		t.Skip("BANGER_BIN does not name the directory of the programs: run make test")
	}
	if os.Getuid() != 0 {
		t.Skip("the daemon needs root")
	}
	if os.Getenv(inside) == "" {
		t.Fatal("the tests would touch the machine's network: TestMain has to call hosttest.Main")
	}
	// Not t.TempDir: that is long, and others may not look into it, while the
	// path of a socket is short and for others to reach.
	dir, err := os.MkdirTemp("", "bgr")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &Host{
		Paths: config.Paths{
			State:  filepath.Join(dir, "state"),
			Run:    filepath.Join(dir, "run"),
			Config: filepath.Join(dir, "config.toml"),
		},
		bin: bin,
	}
	h.env = append([]string{
		"BANGER_STATE_DIR=" + h.Paths.State,
		"BANGER_RUN_DIR=" + h.Paths.Run,
		"BANGER_CONFIG=" + h.Paths.Config,
	}, env...)
	t.Cleanup(func() {
		h.cleanUp(t)
		if h.machine != nil {
			_ = h.machine.Close()
		}
		if t.Failed() {
			h.tellLog(t)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

// NewSystemd is New with the kernel of the fixture and the image debian-systemd, which
// has an init of its own and Docker.
func NewSystemd(t testing.TB, env ...string) *Host {
	t.Helper()
	return newFrom(t, "-systemd", env)
}

// NewSeeded is New with the kernel and the image debian of the fixture.
func NewSeeded(t testing.TB, env ...string) *Host {
	t.Helper()
	return newFrom(t, "", env)
}

// newFrom is New with a copy of one of the fixture's state directories.
func newFrom(t testing.TB, suffix string, env []string) *Host {
	t.Helper()
	fixture := os.Getenv("BANGER_FIXTURE")
	if fixture == "" {
		t.Skip("BANGER_FIXTURE does not name a state directory to copy: run make test")
	}
	h := New(t, env...)
	copied := exec.Command("cp", "-a", "--reflink=auto", "--sparse=always", fixture+suffix, h.Paths.State)
	if out, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("copy the fixture: %v: %s", err, out)
	}
	return h
}

// Env is what a command's environment has beyond the test's, as "NAME=value".
func (h *Host) Env() []string { return slices.Clone(h.env) }

// Program is the path of the command line.
func (h *Host) Program() string { return filepath.Join(h.bin, "banger") }

// Command prepares a command line of banger. It is killed when ctx ends.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.Program(), args...)
	cmd.Env = append(os.Environ(), h.env...)
	// Output that stays open after the command's end means that it has given
	// its output to the daemon.
	cmd.WaitDelay = 10 * time.Second
	return h.Enter(cmd)
}

// Banger runs a command line of banger without input.
func (h *Host) Banger(t testing.TB, args ...string) Result {
	t.Helper()
	return h.Pipe(t, "", args...)
}

// Pipe runs a command line of banger with input.
func (h *Host) Pipe(t testing.TB, input string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return Run(t, h.Command(ctx, args...), input)
}

// Must is Banger for what has to succeed; it returns the standard output
// without space at its ends.
func (h *Host) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := h.Banger(t, args...)
	if r.Exit != 0 {
		t.Fatalf("banger %s: exit status %d\n%s", strings.Join(args, " "), r.Exit, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Run runs a prepared command with input.
func Run(t testing.TB, cmd *exec.Cmd, input string) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Exit: -1}
	if cmd.ProcessState != nil {
		r.Exit = cmd.ProcessState.ExitCode()
	}
	return r
}

// VMs returns the ids of the installation's VMs.
func (h *Host) VMs(t testing.TB) []string {
	t.Helper()
	return strings.Fields(h.Must(t, "vm", "list", "--quiet"))
}

// DaemonPID returns the process id of the daemon, 0 where none answers.
func (h *Host) DaemonPID() int {
	c, err := net.Dial("unix", h.Paths.Socket())
	if err != nil {
		return 0
	}
	defer c.Close()
	_, _, pid, err := linux.PeerCred(c)
	if err != nil {
		return 0
	}
	return int(pid)
}

// KillDaemon kills the daemon, which gets no chance to tidy up.
func (h *Host) KillDaemon(t testing.TB) {
	t.Helper()
	h.endDaemon(t, syscall.SIGKILL)
}

// StopDaemon ends the daemon, if there is one. VMs run on.
func (h *Host) StopDaemon(t testing.TB) {
	t.Helper()
	if h.DaemonPID() != 0 {
		h.endDaemon(t, syscall.SIGTERM)
	}
}

func (h *Host) endDaemon(t testing.TB, signal syscall.Signal) {
	t.Helper()
	pid := h.DaemonPID()
	if pid == 0 {
		t.Fatal("no daemon answers")
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatalf("send %v to the daemon: %v", signal, err)
	}
	Eventually(t, 30*time.Second, fmt.Sprintf("the daemon obeys %v", signal), func() bool {
		return !alive(pid)
	})
}

// installation returns the short id of the installation, which every object of
// its on the host bears; empty before a daemon has minted it.
func (h *Host) installation(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Paths.State, "installation.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	var identity struct{ ID string }
	if err == nil {
		err = json.Unmarshal(text, &identity)
	}
	if err != nil {
		t.Errorf("read the id of the installation: %v", err)
	}
	return identity.ID
}

// tellLog shows the end of the daemon's log.
func (h *Host) tellLog(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Paths.State, "bangerd.log"))
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	t.Logf("the daemon's log ends with:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
}

// Eventually waits until a condition holds and fails t when it does not within what is
// plenty of time on a quiet machine, or several times that on another one.
func Eventually(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(slowness * within); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", slowness*within, what)
		}
	}
}

// alive tells whether a process runs. One that has ended and that nobody has
// waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// proc(5): the state is the first field after the name in parentheses.
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	return !strings.HasPrefix(strings.TrimSpace(string(rest)), "Z")
}
