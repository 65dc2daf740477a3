package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"

	"github.com/creack/pty"
)

// sshHost is an installation with the VM "s" and what OpenSSH needs to reach it.
type sshHost struct {
	*hosttest.Host
	data   string // XDG_DATA_HOME
	config string // an ssh_config file with s.vm
	dir    string
}

const sshFailed = 255 // the exit status of ssh(1) itself

// TestSSH reaches one machine with the OpenSSH of the host.
func TestSSH(t *testing.T) {
	for _, tool := range []string{"ssh", "scp", "sftp", "ssh-keygen", "rsync", "diff"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run make test, which installs it", err)
		}
	}
	// A path with all that a shell or ssh could read something into.
	data := filepath.Join(t.TempDir(), `user's "data" 100%d`)
	h := &sshHost{Host: hosttest.NewSeeded(t, "XDG_DATA_HOME="+data, "LANG=C.UTF-8"), data: data, dir: t.TempDir()}
	h.Must(t, "vm", "run", "--name", "s", "--", "true")
	h.writeConfig(t)

	t.Run("exit status", func(t *testing.T) { h.exitStatus(t) })
	t.Run("streams", func(t *testing.T) { h.streams(t) })
	t.Run("environment", func(t *testing.T) { h.environment(t) })
	t.Run("terminal", func(t *testing.T) { h.terminal(t) })
	t.Run("terminal output is not rewritten", func(t *testing.T) { h.rawTerminal(t) })
	t.Run("scp", func(t *testing.T) { h.scp(t) })
	t.Run("sftp", func(t *testing.T) { h.sftp(t) })
	t.Run("rsync", func(t *testing.T) { h.rsync(t) })
	t.Run("local forward", func(t *testing.T) { h.localForward(t) })
	t.Run("remote forward", func(t *testing.T) { h.remoteForward(t) })
	t.Run("another user", func(t *testing.T) { h.anotherUser(t) })
	t.Run("port 22", func(t *testing.T) { h.port22(t) })
	t.Run("proxy", func(t *testing.T) { h.proxy(t) })
	t.Run("unknown key", func(t *testing.T) { h.unknownKey(t) })
	t.Run("no ssh on the host", func(t *testing.T) { h.noSSH(t) })
	t.Run("daemon killed", func(t *testing.T) { h.daemonKilled(t) })
	t.Run("daemon killed while it lends", func(t *testing.T) { h.killedLending(t) })
	t.Run("host key", func(t *testing.T) { h.hostKey(t) })

	h.Must(t, "vm", "delete", "--force", "s")
	nothingLeft(t, h.Host)
}

func (h *sshHost) writeConfig(t *testing.T) {
	t.Helper()
	h.config = filepath.Join(h.dir, "config")
	if err := os.WriteFile(h.config, []byte(h.Must(t, "vm", "ssh-config", "s")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ssh runs a command line in the VM.
func (h *sshHost) ssh(t *testing.T, args ...string) hosttest.Result {
	t.Helper()
	return h.Banger(t, append([]string{"vm", "ssh", "s"}, args...)...)
}

// must is ssh for what has to succeed.
func (h *sshHost) must(t *testing.T, args ...string) string {
	t.Helper()
	r := h.ssh(t, args...)
	if r.Exit != 0 {
		t.Fatalf("vm ssh s %q: exit status %d\n%s", args, r.Exit, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// tool runs a program of OpenSSH, or rsync, with the configuration.
func (h *sshHost) tool(t *testing.T, input, name string, args ...string) hosttest.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	return hosttest.Run(t, exec.CommandContext(ctx, name, args...), input)
}

func (h *sshHost) exitStatus(t *testing.T) {
	for line, want := range map[string]int{
		"exit 0": 0, "exit 1": 1, "exit 42": 42, "no-such-command": 127, "/etc/passwd": 126,
		"kill -TERM $$": sshFailed, // what ssh makes of a death by a signal
	} {
		if r := h.ssh(t, "--", line); r.Exit != want {
			t.Errorf("%s: exit status %d, want %d\n%s", line, r.Exit, want, r.Stderr)
		}
	}
	h.Must(t, "vm", "create", "--name", "stopped")
	if r := h.Banger(t, "vm", "ssh", "stopped", "--", "true"); r.Exit != exitConflict || !strings.Contains(r.Stderr, "vm start stopped") {
		t.Errorf("ssh to a stopped VM: exit status %d, want %d and a hint\n%s", r.Exit, exitConflict, r.Stderr)
	}
	h.Must(t, "vm", "delete", "stopped")
}

func (h *sshHost) streams(t *testing.T) {
	r := h.Pipe(t, "data\n", "vm", "ssh", "s", "--", "cat; echo to-stderr >&2")
	if r.Stdout != "data\n" || r.Stderr != "to-stderr\n" || r.Exit != 0 {
		t.Errorf("got stdout %q, stderr %q, exit status %d", r.Stdout, r.Stderr, r.Exit)
	}
	big := string(random(t, 8<<20))
	if r := h.Pipe(t, big, "vm", "ssh", "s", "--", "cat"); r.Stdout != big {
		t.Errorf("8 MiB through cat: %d bytes came back, or others; exit status %d\n%s", len(r.Stdout), r.Exit, r.Stderr)
	}
	// Words become a line, as ssh has it, and the user's shell reads it.
	if got := h.must(t, "--", "echo", "$((6*7))", "'a  b'"); got != "42 a  b" {
		t.Errorf("a line of several words: %q", got)
	}
	// What runs on in the background keeps nobody waiting.
	h.must(t, "--", "sleep 100000 & echo started") // it would end by the time that a command has
	h.must(t, "--", "kill $(pidof sleep)")
}

func (h *sshHost) environment(t *testing.T) {
	got := h.must(t, "-o", "SendEnv=LANG", "-o", "SetEnv=LC_TEST=\"a b\" FORBIDDEN=x", "--",
		`echo "$USER $HOME $LANG $LC_TEST ${FORBIDDEN-unset} ${SSH_TTY-none} $SSH_CONNECTION"; pwd`)
	if want := "root /root C.UTF-8 a b unset none UNKNOWN 65535 UNKNOWN 65535\n/root"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
}

// onTerminal runs vm ssh on a terminal of its own.
func (h *sshHost) onTerminal(t *testing.T, args ...string) (*exec.Cmd, *os.File, *buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	cmd := h.Command(ctx, append([]string{"vm", "ssh", "-t", "s"}, args...)...)
	cmd.Env = append(cmd.Env, "TERM=screen")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	out := &buffer{}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(out, tty) // ends with an I/O error, Linux's way to end a terminal
	}()
	t.Cleanup(func() {
		_ = tty.Close()
		<-copied
	})
	return cmd, tty, out
}

func (h *sshHost) terminal(t *testing.T) {
	cmd, tty, out := h.onTerminal(t)
	send := func(line string) {
		t.Helper()
		if _, err := io.WriteString(tty, line); err != nil {
			t.Fatal(err)
		}
	}
	// The terminal echoes what is typed, so what is awaited must not be in it.
	send("echo size $(stty size) $TERM $SSH_TTY $((40+2))\r")
	out.await(t, "size 24 80 screen /dev/pts/")
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 31, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	send("while [ \"$(stty size)\" != '31 101' ]; do sleep 0.1; done; echo resized $((40+3))\r")
	out.await(t, "resized 43")
	send("echo asleep $((40+5)); sleep 1000\r")
	out.await(t, "asleep 45")
	interruptSleep(t, h.Host, "s", send, out)
	send("exit 7\r")
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 {
		t.Errorf("exit status: %v, want 7\n%s", err, out)
	}
}

// rawTerminal prints a line feed where the guest's terminal leaves it alone.
func (h *sshHost) rawTerminal(t *testing.T) {
	cmd, _, out := h.onTerminal(t, "--", `stty raw; printf 'one\ntwo\r\nend'`)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out.await(t, "end")
	if !strings.Contains(out.String(), "one\ntwo\r\nend") {
		t.Errorf("the output of a raw terminal was rewritten: %q", out)
	}
}

func (h *sshHost) scp(t *testing.T) {
	content := random(t, 4<<20)
	h.write(t, "tree/a file", content)
	h.write(t, "tree/sub/other", []byte("other"))
	from := filepath.Join(h.dir, "tree")
	if r := h.tool(t, "", "scp", "-q", "-r", "-p", "-F", h.config, from, "s.vm:/tmp/"); r.Exit != 0 {
		t.Fatalf("scp to the VM: exit status %d\n%s", r.Exit, r.Stderr)
	}
	back := filepath.Join(h.dir, "back")
	if r := h.tool(t, "", "scp", "-q", "-r", "-F", h.config, "s.vm:/tmp/tree", back); r.Exit != 0 {
		t.Fatalf("scp from the VM: exit status %d\n%s", r.Exit, r.Stderr)
	}
	h.sameTree(t, from, back)
	if r := h.tool(t, "", "scp", "-q", "-F", h.config, "s.vm:/no/such/file", back); r.Exit == 0 || !strings.Contains(r.Stderr, "No such file") {
		t.Errorf("scp of a file that is not there: exit status %d\n%s", r.Exit, r.Stderr)
	}
}

func (h *sshHost) sftp(t *testing.T) {
	h.write(t, "put", []byte("put by sftp"))
	got := filepath.Join(h.dir, "got")
	batch := fmt.Sprintf("mkdir dir\nput %s dir/first\nrename dir/first dir/second\nchmod 600 dir/second\nln -s second dir/link\nget dir/link %s\nls -l dir\n",
		filepath.Join(h.dir, "put"), got)
	r := h.tool(t, batch, "sftp", "-q", "-b", "-", "-F", h.config, "s.vm")
	if r.Exit != 0 || !strings.Contains(r.Stdout, "-rw-------") {
		t.Fatalf("sftp: exit status %d\n%s%s", r.Exit, r.Stdout, r.Stderr)
	}
	if text, err := os.ReadFile(got); err != nil || string(text) != "put by sftp" {
		t.Errorf("%q came back (%v)", text, err)
	}
	if where := h.must(t, "--", "readlink /root/dir/link; stat -c %a /root/dir/second"); where != "second\n600" {
		t.Errorf("in the VM: %q", where)
	}
}

// rsync finds an rsync at the other end although the image has none: the host's own.
func (h *sshHost) rsync(t *testing.T) {
	if where := h.must(t, "--", "command -v rsync || echo none"); where != "none" {
		t.Fatalf("the image has an rsync of its own: %s", where)
	}
	from, back := filepath.Join(h.dir, "tree"), filepath.Join(h.dir, "rsynced")
	h.write(t, "tree/it's $(a) *name", []byte("awkward"))
	shell := "ssh -F " + h.config
	for _, args := range [][]string{{from + "/", "s.vm:/tmp/rsynced/"}, {"s.vm:/tmp/rsynced/", back}} {
		if r := h.tool(t, "", "rsync", append([]string{"-a", "--delete", "-e", shell}, args...)...); r.Exit != 0 {
			t.Fatalf("rsync %v: exit status %d\n%s", args, r.Exit, r.Stderr)
		}
	}
	h.sameTree(t, from, back)
	// An image's own counts.
	h.must(t, "--", `printf '#!/bin/sh\necho its own >&2; exit 9\n' >/usr/local/bin/rsync && chmod +x /usr/local/bin/rsync`)
	if r := h.tool(t, "", "rsync", "-a", "-e", shell, from+"/", "s.vm:/tmp/own/"); r.Exit == 0 || !strings.Contains(r.Stderr, "its own") {
		t.Errorf("with an rsync in the image: exit status %d\n%s", r.Exit, r.Stderr)
	}
	h.must(t, "--", "rm /usr/local/bin/rsync")
}

// proxy is connected to something that is no ssh client.
func (h *sshHost) proxy(t *testing.T) {
	for name, input := range map[string]string{"nothing": "", "a version only": "SSH-2.0-x\r\n", "garbage": string(random(t, 1<<20))} {
		r := h.Pipe(t, input, "vm", "proxy", "s")
		if !strings.HasPrefix(r.Stdout, "SSH-2.0-banger") || r.Exit < 0 {
			t.Errorf("%s: exit status %d, stdout %.40q\n%s", name, r.Exit, r.Stdout, r.Stderr)
		}
	}
	if r := h.Banger(t, "vm", "proxy", "nobody"); r.Exit != exitNotFound {
		t.Errorf("proxy to a VM that is not there: exit status %d\n%s", r.Exit, r.Stderr)
	}
	h.must(t, "--", "true")
}

func (h *sshHost) unknownKey(t *testing.T) {
	other := filepath.Join(h.dir, "other")
	if r := h.tool(t, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	config, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(config)) {
		if strings.Contains(line, "IdentityFile") {
			line = "  IdentityFile " + other + "\n"
		}
		lines = append(lines, line)
	}
	h.write(t, "other-config", []byte(strings.Join(lines, "")))
	r := h.tool(t, "", "ssh", "-F", filepath.Join(h.dir, "other-config"), "s.vm", "true")
	if r.Exit != sshFailed || !strings.Contains(r.Stderr, "Permission denied (publickey)") {
		t.Errorf("with another key: exit status %d\n%s", r.Exit, r.Stderr)
	}
}

func (h *sshHost) noSSH(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, "vm", "ssh", "s", "--", "true")
	cmd.Env = append(cmd.Env, "PATH="+t.TempDir())
	refused{args: cmd.Args, exit: exitUnavailable, error: "no ssh in PATH", hint: "openssh-client"}.says(t, hosttest.Run(t, cmd, ""))
}

// daemonKilled kills the daemon under a session, which ends; another one begins.
func (h *sshHost) daemonKilled(t *testing.T) {
	out := &buffer{}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, "vm", "ssh", "s", "--", "trap 'echo hung up >/tmp/hup; exit' HUP; echo ready; while :; do sleep 0.1; done")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "ready")
	h.KillDaemon(t)
	_ = cmd.Wait() // the exit status is looked at
	if got := cmd.ProcessState.ExitCode(); got != sshFailed {
		t.Errorf("the session in flight: exit status %d, want %d\n%s", got, sshFailed, out)
	}
	h.must(t, "--", "true")
	hosttest.Eventually(t, 30*time.Second, "the command of the broken session is told", func() bool {
		return h.must(t, "--", "cat /tmp/hup || true") == "hung up"
	})
}

// killedLending kills the daemon at some instants of a copy for which the VM has to
// borrow rsync. The copy is whole or has failed, and the next one borrows again.
func (h *sshHost) killedLending(t *testing.T) {
	const lent = "/run/banger/rsync"
	from := filepath.Join(h.dir, "long")
	h.write(t, "long/copy", random(t, 16<<20))
	rsync := func(to string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "rsync", "-a", "-e", "ssh -F "+h.config, from+"/", to)
	}
	for _, after := range []time.Duration{300 * time.Millisecond, time.Second} {
		h.must(t, "--", "umount /run/banger/bin/rsync; rm -r /run/banger/bin/rsync "+lent+"; rm -rf /tmp/cut")
		cut := rsync("s.vm:/tmp/cut/")
		if err := cut.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		h.KillDaemon(t)
		t.Logf("killed %v into a copy: %v", after, cut.Wait())
		if r := hosttest.Run(t, rsync("s.vm:/tmp/cut/"), ""); r.Exit != 0 {
			t.Fatalf("rsync after the daemon was killed %v into one: exit status %d\n%s", after, r.Exit, r.Stderr)
		}
		if there := h.must(t, "--", "echo "+lent+"*"); there != lent {
			t.Errorf("what was borrowed is in %s", there)
		}
		if err := os.RemoveAll(filepath.Join(h.dir, "uncut")); err != nil {
			t.Fatal(err)
		}
		if r := hosttest.Run(t, rsync("s.vm:/tmp/cut/"), ""); r.Exit != 0 {
			t.Fatalf("rsync with what is there: exit status %d\n%s", r.Exit, r.Stderr)
		}
		h.Must(t, "vm", "cp", "s:/tmp/cut/.", filepath.Join(h.dir, "uncut"))
		h.sameTree(t, from, filepath.Join(h.dir, "uncut"))
	}
}

// hostKey is the same for the VM's life, and another one is refused.
func (h *sshHost) hostKey(t *testing.T) {
	pattern := filepath.Join(h.data, "banger", "*", "known_hosts.d", h.VMs(t)[0])
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %v (%v)", pattern, files, err)
	}
	before, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	h.Must(t, "vm", "stop", "s")
	h.StopDaemon(t)
	h.Must(t, "vm", "start", "s")
	if r := h.tool(t, "", "ssh", "-F", h.config, "s.vm", "true"); r.Exit != 0 {
		t.Errorf("after stop and start: exit status %d\n%s", r.Exit, r.Stderr)
	}
	h.must(t, "--", "true")
	if after, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the host key was %q and is %q (%v)", before, after, err)
	}
	key := filepath.Join(h.dir, "wrong")
	if r := h.tool(t, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	wrong, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], append([]byte(h.VMs(t)[0]+" "), wrong...), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.tool(t, "", "ssh", "-F", h.config, "s.vm", "true"); r.Exit != sshFailed || !strings.Contains(r.Stderr, "verification failed") {
		t.Errorf("with another host key: exit status %d\n%s", r.Exit, r.Stderr)
	}
	h.must(t, "--", "true") // the daemon knows better
	info, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(files[0])), "id_ed25519"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v (%v)", info.Mode(), err)
	}
}

func (h *sshHost) write(t *testing.T, name string, content []byte) {
	t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (h *sshHost) sameTree(t *testing.T, a, b string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "diff", "-r", a, b).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}
