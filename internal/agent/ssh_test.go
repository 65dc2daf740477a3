package agent

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"banger/internal/guest/wire"
)

func newKey(t testing.TB) (signer ssh.Signer, text string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err = ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

func authorizedLine(key ssh.Signer) string { return string(ssh.MarshalAuthorizedKey(key.PublicKey())) }

// sshd is a server on a port of this host, which runs commands as the test's user.
type sshd struct {
	*sshServer
	address string
	host    ssh.Signer
	user    ssh.Signer
}

func startSSHD(t testing.TB) *sshd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("the agent is root")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	host, text := newKey(t)
	user, _ := newKey(t)
	d := &sshd{sshServer: newSSHServer(&image{}), address: l.Addr().String(), host: host, user: user}
	d.watch.Do(func() {}) // port 22 is this host's
	d.configure(wire.SSH{HostKey: text, AuthorizedKeys: []string{authorizedLine(user)}})
	go d.accept(l)
	return d
}

func (d *sshd) dial(user string, key ssh.Signer) (*ssh.Client, error) {
	return ssh.Dial("tcp", d.address, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(d.host.PublicKey()), Timeout: time.Minute,
	})
}

func (d *sshd) client(t testing.TB) *ssh.Client {
	t.Helper()
	c, err := d.dial("root", d.user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newSession(t testing.TB, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSSHWhoGetsIn(t *testing.T) {
	d := startSSHD(t)
	other, _ := newKey(t)
	for _, test := range []struct {
		name, user string
		key        ssh.Signer
		in         bool
	}{
		{"root", "root", d.user, true},
		{"another user", "nobody", d.user, true},
		{"unknown user", "no-such-user", d.user, false},
		{"a group of one's choice", "nobody:root", d.user, false},
		{"no user", "", d.user, false},
		{"unknown key", "root", other, false},
	} {
		c, err := d.dial(test.user, test.key)
		if (err == nil) != test.in {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil {
			_ = c.Close()
		}
	}
	// Keys that are taken away let nobody in any more.
	d.configure(wire.SSH{HostKey: d.settings.HostKey, AuthorizedKeys: []string{authorizedLine(other)}})
	if _, err := d.dial("root", d.user); err == nil {
		t.Error("a key that was replaced is accepted")
	}
}

func TestSSHConfigureRefuses(t *testing.T) {
	key, text := newKey(t)
	for name, c := range map[string]wire.SSH{
		"no host key":    {AuthorizedKeys: []string{authorizedLine(key)}, HostKey: "x"},
		"not a key":      {HostKey: text, AuthorizedKeys: []string{"ssh-ed25519 AAAA"}},
		"options":        {HostKey: text, AuthorizedKeys: []string{`command="x" ` + authorizedLine(key)}},
		"two in a line":  {HostKey: text, AuthorizedKeys: []string{authorizedLine(key) + authorizedLine(key)}},
		"too many lines": {HostKey: text, AuthorizedKeys: make([]string, maxAuthKeys+1)},
	} {
		s := newSSHServer(&image{})
		s.watch.Do(func() {})
		s.configure(c)
		ours, theirs := net.Pipe()
		go s.handle(theirs, make(chan struct{}, 1))
		if b, err := io.ReadAll(ours); len(b) > 0 || err != nil {
			t.Errorf("%s: the server says %q (%v), want nothing", name, b, err)
		}
	}
}

func TestSSHBeforeConfiguration(t *testing.T) {
	ours, theirs := net.Pipe()
	go newSSHServer(&image{}).handle(theirs, make(chan struct{}, 1))
	if b, err := io.ReadAll(ours); len(b) > 0 || err != nil {
		t.Errorf("read %q (%v), want nothing", b, err)
	}
}

func TestSSHExit(t *testing.T) {
	c := startSSHD(t).client(t)
	err := newSession(t, c).Run("kill -TERM $$")
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.Signal() != "TERM" {
		t.Errorf("killed: %v", err)
	}
	err = newSession(t, c).Run("exit 5")
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != 5 {
		t.Errorf("exit 5: %v", err)
	}
	// A session runs one command.
	s := newSession(t, c)
	if err := s.Start("cat"); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{"true"})); ok || err != nil {
		t.Errorf("a second command: %v (%v)", ok, err)
	}
	_ = s.Close()
}

func TestSSHSignal(t *testing.T) {
	s := newSession(t, startSSHD(t).client(t))
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	err = s.Wait()
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != 9 {
		t.Errorf("after the signal: %v", err)
	}
}

func TestSSHRefusesWhatItDoesNotDo(t *testing.T) {
	c := startSSHD(t).client(t)
	s := newSession(t, c)
	for name, payload := range map[string][]byte{
		"auth-agent-req@openssh.com": nil,
		"x11-req":                    make([]byte, 16),
		"subsystem":                  ssh.Marshal(struct{ Name string }{"netconf"}),
		"pty-req":                    []byte("short"),
		"env":                        ssh.Marshal(struct{ Name, Value string }{"LD_PRELOAD", "/tmp/x.so"}),
		"unheard-of":                 nil,
	} {
		if ok, err := s.SendRequest(name, true, payload); ok || err != nil {
			t.Errorf("%s: %v (%v)", name, ok, err)
		}
	}
	if _, _, err := c.OpenChannel("direct-streamlocal@openssh.com", nil); err == nil {
		t.Error("a channel of an unknown kind is open")
	}
	for _, payload := range [][]byte{nil, ssh.Marshal(forward{"127.0.0.1", 70000})} {
		if ok, _, err := c.SendRequest("tcpip-forward", true, payload); ok || err != nil {
			t.Errorf("forward %x: %v (%v)", payload, ok, err)
		}
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err != nil || ok {
		t.Errorf("keepalive: %v (%v); any answer says that we are there", ok, err)
	}
}

func TestSSHChannelsAreBounded(t *testing.T) {
	c := startSSHD(t).client(t)
	for i := range maxSSHChannels {
		if _, _, err := c.OpenChannel("session", nil); err != nil {
			t.Fatalf("channel %d: %v", i, err)
		}
	}
	_, _, err := c.OpenChannel("session", nil)
	if refused, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || refused.Reason != ssh.ResourceShortage {
		t.Errorf("one channel more: %v", err)
	}
}

func TestSSHForwardsAreBounded(t *testing.T) {
	c := startSSHD(t).client(t)
	var listeners []net.Listener
	for i := range maxForwards {
		l, err := c.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("forward %d: %v", i, err)
		}
		listeners = append(listeners, l)
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("one forward more is taken")
	}
	// One that is given back makes room, and its port is closed.
	gone := listeners[0].Addr().String()
	if err := listeners[0].Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", gone); err == nil {
		_ = conn.Close()
		t.Error("a port that was given back is open")
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Errorf("after one was given back: %v", err)
	}
}

func TestSSHConnectionsAreBounded(t *testing.T) {
	d := startSSHD(t)
	greeting := func() (net.Conn, error) {
		conn, err := net.Dial("tcp", d.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.ReadFull(conn, make([]byte, len("SSH-2.0-banger")))
		return conn, err
	}
	var conns []net.Conn
	for i := range maxSSHConns {
		conn, err := greeting()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, conn)
	}
	if _, err := greeting(); err == nil {
		t.Error("one connection more is served")
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
}

func TestSFTPServer(t *testing.T) {
	d := startSSHD(t)
	c, err := d.dial("nobody", d.user)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Not below t.TempDir, which others may not enter.
	dir, err := os.MkdirTemp("", "sftp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	files, err := sftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	if err := files.Symlink("target", dir+"/link"); err != nil {
		t.Error(err)
	}
	if target, err := os.Readlink(dir + "/link"); err != nil || target != "target" {
		t.Errorf("link to %q (%v)", target, err)
	}
	if _, err := files.Open("/etc/shadow"); err == nil {
		t.Error("nobody reads a file of root's")
	}
}

func TestAcceptedEnv(t *testing.T) {
	for name, want := range map[string]bool{
		"LANG": true, "LC_ALL": true, "LC_": false, "TZ": true, "COLORTERM": true,
		"PATH": false, "LD_PRELOAD": false, "": false, "LC_" + strings.Repeat("X", 100): false, "HOME": false,
		"LC_A=B": false,
	} {
		if got := acceptedEnv(name); got != want {
			t.Errorf("%.20s: %v", name, got)
		}
	}
}

func TestPlainWords(t *testing.T) {
	for line, want := range map[string]string{
		"ls -l  /tmp": "ls|-l|/tmp", "/bin/true": "/bin/true", "a --b=c": "a|--b=c",
		"": "", "  ": "", "a | b": "", "a > b": "", "echo $HOME": "", "'a b'": "", "a;b": "", "A=b c": "", "ls *": "", "a\nb": "",
		`a b\ c \*\\`: `a|b c|*\`, `a \`: "", "a \\\nb": "", `a \$x y`: "a|$x|y",
	} {
		words, ok := plainWords(line)
		if got := strings.Join(words, "|"); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", line, got, ok)
		}
	}
}

// FuzzSSHStream feeds what is no ssh, or broken ssh, to the server.
func FuzzSSHStream(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14"))
	f.Add(bytes.Repeat([]byte("x"), 5000))
	d := startSSHD(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		conn, err := net.Dial("tcp", d.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(input) // the server may have enough of it
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(sshAuthTime))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the server did not end the connection")
		}
	})
}

// FuzzSSHRequest gives a session requests that do not start anything.
func FuzzSSHRequest(f *testing.F) {
	f.Add(uint8(0), ssh.Marshal(struct{ Name, Value string }{"LC_X", "y"}))
	f.Add(uint8(1), ssh.Marshal(struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}{"xterm", 80, 1 << 20, 0, 0, ""}))
	f.Add(uint8(2), ssh.Marshal(struct{ Cols, Rows, Width, Height uint32 }{1, 2, 3, 4}))
	f.Add(uint8(3), ssh.Marshal(struct{ Name string }{"KILL"}))
	kinds := []string{"env", "pty-req", "window-change", "signal", "x11-req"}
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		s := &sshSession{}
		for range maxSSHEnv + 1 {
			s.request(&ssh.Request{Type: kinds[int(kind)%len(kinds)], Payload: payload})
		}
		if len(s.env) > maxSSHEnv || len(s.term) > maxTerminal {
			t.Errorf("%d variables, %d bytes of a terminal's name", len(s.env), len(s.term))
		}
		for _, v := range s.env {
			if strings.ContainsRune(v, 0) {
				t.Errorf("a NUL in %q", v)
			}
		}
	})
}
