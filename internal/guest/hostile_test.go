package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest/wire"
)

// garbage is endless, and never the answer of an agent.
type garbage struct{}

func (garbage) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i*7 + 3)
	}
	return len(p), nil
}

// TestFloods has guests that send without end, whatever they are asked.
func TestFloods(t *testing.T) {
	t.Run("in place of a handshake", func(t *testing.T) {
		host, port := net.Pipe()
		sent := make(chan int64, 1)
		go func() { _, _ = io.Copy(io.Discard, port) }()
		go func() {
			n, _ := io.Copy(port, garbage{})
			sent <- n
		}()
		_, err := Connect(t.Context(), Serial, func(context.Context) (net.Conn, error) { return host, nil }, "secret")
		expectGuest(t, err, "no answer among the first")
		if n := <-sent; n > 70<<20 { // the connection was closed
			t.Errorf("%d bytes were read", n)
		}
		_ = port.Close()
	})
	for name, frames := range map[string]io.Reader{
		"of noise":                garbage{},
		"of frames for no stream": repeated{0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0},
		"of window updates":       repeated{0, 1, 0, 0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff},
		"of goodbyes":             repeated{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"of streams":              repeated{0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0},
		"of a frame of 4 GiB":     io.MultiReader(bytes.NewReader([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff}), garbage{}),
	} {
		t.Run(name, func(t *testing.T) {
			c, port := afterHandshake(t)
			flooded := make(chan struct{})
			go func() {
				defer close(flooded)
				_, _ = io.Copy(port, frames)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if _, err := c.Configure(ctx, wire.Configure{}); err == nil {
				t.Error("an answer came")
			}
			c.Close()
			<-flooded
		})
	}
}

// repeated is the same bytes again and again.
type repeated []byte

func (r repeated) Read(p []byte) (int, error) {
	n := 0
	for n+len(r) <= len(p) {
		n += copy(p[n:], r)
	}
	return n, nil
}

// afterHandshake is a connection to a guest that has shaken hands properly, told its
// health once, and is the test's from then on.
func afterHandshake(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	host, port := net.Pipe()
	tap := &gate{Conn: port, open: make(chan struct{})}
	server := &http.Server{Handler: greeting(fmt.Sprintf(`{"protocol":%d}`, wire.Protocol))}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(wire.Listen(tap, "secret"))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		_ = port.Close()
		<-served
	})
	c, err := Connect(t.Context(), Serial, func(context.Context) (net.Conn, error) { return host, nil }, "secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	close(tap.open)
	return c, port
}

// gate lets what is written through until it is closed, and what is read still.
type gate struct {
	net.Conn
	open chan struct{} // closed: nothing is written any more
}

func (g *gate) Write(p []byte) (int, error) {
	select {
	case <-g.open:
		return len(p), nil
	default:
		return g.Conn.Write(p)
	}
}

// TestSlowGuests has guests that answer or read so slowly that it never ends.
func TestSlowGuests(t *testing.T) {
	t.Run("trickle", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		err := meet(ctx, t, hostile(t, func(stream net.Conn) {
			for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat(" ", 1000)) {
				if _, err := stream.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}))
		expectGuest(t, err, "configure guest: ")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a deadline exceeded", err)
		}
	})
	t.Run("reads nothing", func(t *testing.T) {
		mux := greeting(fmt.Sprintf(`{"protocol":%d}`, wire.Protocol))
		asked, done := make(chan struct{}), make(chan struct{})
		mux.HandleFunc("PUT /files", func(http.ResponseWriter, *http.Request) {
			close(asked)
			<-done
		})
		defer close(done)
		c, err := Connect(t.Context(), Serial, serve(t, mux), "secret")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithCancel(t.Context())
		written := make(chan error, 1)
		go func() { written <- c.WriteFiles(ctx, api.WriteFiles{Path: "/"}, bufio.NewReader(garbage{})) }()
		<-asked
		if _, err := c.Configure(t.Context(), wire.Configure{Hostname: "x"}); err != nil { // others get through meanwhile
			t.Error(err)
		}
		cancel()
		if err := <-written; !errors.Is(err, context.Canceled) {
			t.Errorf("what nobody reads was written: %v", err)
		}
	})
}
