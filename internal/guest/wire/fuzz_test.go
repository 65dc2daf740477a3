package wire

import (
	"bytes"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// FuzzSync has an agent that answers the host's first call with rubbish, and then
// hangs up. It knows the magic, but the nonce, which is in the call, only echoed.
func FuzzSync(f *testing.F) {
	magic := agentMagic("secret")
	f.Add([]byte{}, true)
	f.Add([]byte("rubbish"), false)
	f.Add(append(bytes.Clone(magic), make([]byte, nonceSize)...), true)
	f.Add(append(bytes.Clone(magic), magic...), true)
	f.Add(magic[:31], true)
	f.Fuzz(func(t *testing.T, rubbish []byte, answer bool) {
		host, port := socketPair(t)
		after := []byte("what follows")
		go func() {
			call := make([]byte, len(magic)+nonceSize)
			_, err := io.ReadFull(port, call)
			if err == nil {
				_, err = port.Write(rubbish)
			}
			if err == nil && answer {
				_, _ = port.Write(append(append(bytes.Clone(magic), call[len(magic):]...), after...))
			}
			_ = port.Close()
		}()
		c, err := Sync(t.Context(), host, "secret")
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			rest, err := io.ReadAll(c)
			if err != nil || !answer || !bytes.HasSuffix(rest, after) && !bytes.Contains(rubbish, magic) {
				t.Errorf("synchronised, then read %q, %v", rest, err)
			}
		} else if answer && !bytes.Contains(rubbish, magic) {
			t.Errorf("an answer after rubbish was not found: %v", err)
		}
		_ = host.Close()
	})
}

// socketPair returns the ends of a connection that, unlike net.Pipe, gives what was
// written before the other end was closed; socketpair(2).
func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// FuzzListen has a host that sends rubbish before it calls.
func FuzzListen(f *testing.F) {
	magic := hostMagic("secret")
	f.Add([]byte{}, uint16(1))
	f.Add(magic[:31], uint16(7))
	f.Add(append(bytes.Clone(magic), 1, 2, 3), uint16(5))
	f.Add(append(append(bytes.Clone(magic), make([]byte, nonceSize)...), 0, 9, 9), uint16(64))
	f.Fuzz(func(t *testing.T, rubbish []byte, split uint16) {
		if len(rubbish) > 16<<10 {
			return
		}
		host, port := net.Pipe()
		l := Listen(port, "secret")
		defer func() { _ = l.Close() }()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		call := append(bytes.Clone(magic), "0123456789abcdef"...)
		// A call is made again when there is no answer; the first may have been
		// taken for the nonce of a magic in the rubbish.
		answer := append(agentMagic("secret"), "0123456789abcdef"...)
		go func() {
			all := append(bytes.Clone(rubbish), append(bytes.Clone(call), call...)...)
			for len(all) > 0 {
				n := min(int(split)+1, len(all))
				if _, err := host.Write(all[:n]); err != nil {
					return
				}
				all = all[n:]
			}
		}()
		_ = host.SetReadDeadline(time.Now().Add(20 * time.Second))
		var got []byte
		for buf := make([]byte, 4096); !bytes.Contains(got, answer); {
			n, err := host.Read(buf)
			if err != nil {
				t.Fatalf("no answer after %q: %v", rubbish, err)
			}
			got = append(got, buf[:n]...)
		}
		_ = host.Close()
	})
}
