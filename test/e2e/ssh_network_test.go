package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// counter is a server in the guest that answers, at the end of what it is sent,
// with how much that was.
const counter = `perl -MIO::Socket::INET -e '
$l = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 7001, Listen => 5, ReuseAddr => 1) or die;
$| = 1; print "listening\n";
while ($c = $l->accept) { $n = 0; $n += length while <$c>; print $c "got $n\n"; close $c }'`

func (h *sshHost) localForward(t *testing.T) {
	port := freePort(t)
	out := &buffer{}
	cmd := h.Command(t.Context(), "vm", "ssh", "s", "-L", fmt.Sprintf("%d:localhost:7001", port), "--", counter)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	out.await(t, "listening")
	for range 2 {
		conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		sent := bytes.Repeat([]byte("0123456789\n"), 1<<17)
		if _, err := conn.Write(sent); err != nil {
			t.Error(err)
		}
		// One direction ends, the other one has the answer yet to come.
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		answer, err := io.ReadAll(conn)
		if want := fmt.Sprintf("got %d\n", len(sent)); err != nil || string(answer) != want {
			t.Errorf("answer %q (%v), want %q", answer, err, want)
		}
		_ = conn.Close()
	}
}

func (h *sshHost) remoteForward(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "from the host\n")
			_ = conn.Close()
		}
	}()
	got := h.must(t, "-R", "7002:"+l.Addr().String(), "-o", "ExitOnForwardFailure=yes", "--", "cat </dev/tcp/127.0.0.1/7002")
	if got != "from the host" {
		t.Errorf("through the forwarded port: %q", got)
	}
	// It ends with the connection.
	if r := h.ssh(t, "--", "cat </dev/tcp/127.0.0.1/7002"); r.Exit == 0 {
		t.Errorf("the port is open after its connection has ended: %q", r.Stdout)
	}
}

// anotherUser logs in as a user of the image, who has that user's rights only.
func (h *sshHost) anotherUser(t *testing.T) {
	h.must(t, "--", "useradd -m -s /bin/bash dev && chmod 700 /root && echo secret >/root/secret")
	if got := h.must(t, "-l", "dev", "--", "id -un; pwd; echo $HOME; ulimit -n >/dev/null"); got != "dev\n/home/dev\n/home/dev" {
		t.Errorf("as dev: %q", got)
	}
	config := filepath.Join(h.dir, "dev")
	if err := os.WriteFile(config, []byte(h.Must(t, "vm", "ssh-config", "-l", "dev", "s")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.write(t, "mine", []byte("mine"))
	batch := "-get /root/secret " + filepath.Join(h.dir, "secret") + "\n-put " + filepath.Join(h.dir, "mine") + " /etc/mine\nput " +
		filepath.Join(h.dir, "mine") + " mine\n"
	if r := h.tool(t, batch, "sftp", "-q", "-b", "-", "-F", config, "s.vm"); r.Exit != 0 {
		t.Errorf("sftp as dev: exit status %d\n%s", r.Exit, r.Stderr)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "secret")); err == nil {
		t.Error("dev has read a file of root's by sftp")
	}
	if r := h.tool(t, "", "rsync", "-a", "-e", "ssh -F "+config, filepath.Join(h.dir, "mine"), "s.vm:by-rsync"); r.Exit != 0 {
		t.Errorf("rsync as dev: exit status %d\n%s", r.Exit, r.Stderr)
	}
	if got := h.must(t, "--", "stat -c %U /home/dev/mine /home/dev/by-rsync; test -e /etc/mine || echo none"); got != "dev\ndev\nnone" {
		t.Errorf("what dev has put: %q", got)
	}
	if r := h.ssh(t, "-l", "dev", "-R", "80:localhost:1", "-o", "ExitOnForwardFailure=yes", "--", "true"); r.Exit != sshFailed {
		t.Errorf("dev listens on a port of root's: exit status %d", r.Exit)
	}
	if r := h.ssh(t, "-l", "nobody-here", "--", "true"); r.Exit != sshFailed || !strings.Contains(r.Stderr, `no user "nobody-here"`) {
		t.Errorf("as a user who is not there: exit status %d\n%s", r.Exit, r.Stderr)
	}
}

// port22 is served by the agent as long as the image has no server of its own.
func (h *sshHost) port22(t *testing.T) {
	greeting := func() string { return h.ssh(t, "--", "head -c 14 </dev/tcp/127.0.0.1/22").Stdout }
	if h.must(t, "--", "ls /usr/sbin/sshd || true") != "" {
		t.Fatal("the image has sshd: this test is about one that has not")
	}
	hosttest.Eventually(t, 30*time.Second, "the agent listens on port 22", func() bool { return greeting() == "SSH-2.0-banger" })
	if got := h.must(t, "--", "exec 3<>/dev/tcp/127.0.0.1/22; head -c 100000 /dev/urandom >&3; head -c 14 <&3; echo; echo alive"); got != "SSH-2.0-banger\nalive" {
		t.Errorf("after garbage: %q", got)
	}
	h.must(t, "--", "touch /usr/sbin/sshd")
	hosttest.Eventually(t, 30*time.Second, "the agent leaves port 22 to an sshd", func() bool { return greeting() == "" })
	h.must(t, "--", "rm /usr/sbin/sshd")
	hosttest.Eventually(t, 30*time.Second, "the agent listens again", func() bool { return greeting() == "SSH-2.0-banger" })
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
