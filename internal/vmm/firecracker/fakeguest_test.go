package firecracker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"banger/internal/guest/wire"
)

// listen is the host's end of vsock.
func (f *fakeVMM) listen(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("Vsock config error: Cannot create backend for vsock device: %w", err)
	}
	f.vsock = path
	agent := make(chan net.Conn)
	go func() { _ = http.Serve(chanListener{agent, l.Addr()}, fakeAgent()) }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.connected(c, agent)
		}
	}()
	return nil
}

// connected is a connection from the host, with the guest's choice of what to answer.
func (f *fakeVMM) connected(c net.Conn, agent chan<- net.Conn) {
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "CONNECT ") {
		_ = c.Close()
		return
	}
	switch f.Guest {
	case "refuses", "never ready, refuses":
		_ = c.Close()
	case "late":
		if !f.late.Load() {
			_ = c.Close()
			return
		}
		_, _ = fmt.Fprintf(c, "OK %d\n", 1)
		agent <- &buffered{c, in}
	case "says nothing":
	case "garbage":
		_, _ = c.Write([]byte(strings.Repeat("\x00garbage", 1000)))
	case "endless":
		for {
			if _, err := c.Write([]byte("OK")); err != nil {
				return
			}
		}
	default:
		if f.stopped() { // as with a real one, it waits
			for f.stopped() {
				time.Sleep(5 * time.Millisecond)
			}
		}
		_, _ = fmt.Fprintf(c, "OK %d\n", 1073741824)
		switch f.Guest {
		case "large headers":
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"))
		case "slow":
			time.Sleep(time.Minute)
		case "flood":
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
		agent <- &buffered{c, in}
	}
}

func (f *fakeVMM) stopped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paused
}

// guest is what the guest does when it has booted.
func (f *fakeVMM) guest() error {
	ready := fmt.Sprintf("%s_%d", f.vsock, wire.ReadyPort)
	switch f.Guest {
	case "never ready", "never ready, refuses":
		return nil
	case "late":
		time.AfterFunc(time.Second, func() {
			f.late.Store(true)
			if c, err := net.Dial("unix", ready); err == nil {
				_ = c.Close()
			}
		})
		return nil
	case "eager":
		go func() {
			for {
				c, err := net.Dial("unix", ready)
				if err == nil {
					_ = c.Close()
				}
			}
		}()
		return nil
	case "panics":
		fmt.Print("Kernel panic - not syncing: no init\n")
		fmt.Fprintln(os.Stderr, "firecracker says goodbye")
		time.AfterFunc(50*time.Millisecond, func() { os.Exit(148) })
		return nil
	}
	time.AfterFunc(50*time.Millisecond, func() {
		if c, err := net.Dial("unix", ready); err == nil {
			_ = c.Close()
		}
	})
	return nil
}

// fakeAgent answers as an agent does, and echoes.
func fakeAgent() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /alive", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(wire.Greeting{Protocol: wire.Protocol, Uptime: 2, Started: 1})
	})
	mux.HandleFunc("POST /poweroff", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		fmt.Printf("%s\n[    9.000000] reboot: Restarting system\n", wire.OffWord)
		time.AfterFunc(20*time.Millisecond, func() { os.Exit(0) })
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	})
	return mux
}

// buffered is a connection of which some bytes were read.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// chanListener accepts what comes from a channel.
type chanListener struct {
	conns <-chan net.Conn
	addr  net.Addr
}

func (l chanListener) Accept() (net.Conn, error) { return <-l.conns, nil }
func (l chanListener) Close() error              { return nil }
func (l chanListener) Addr() net.Addr            { return l.addr }
