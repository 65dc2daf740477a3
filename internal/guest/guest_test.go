package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"banger/api"
	"banger/internal/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve is a guest whose agent answers with handler, on a serial channel.
func serve(t *testing.T, handler http.Handler) Dialer {
	t.Helper()
	host, port := net.Pipe()
	var conns sync.WaitGroup
	server := &http.Server{Handler: handler, ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			conns.Done()
		}
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(wire.Listen(port, "secret"))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		conns.Wait() // half a second for one whose request was not read to its end
	})
	return func(context.Context) (net.Conn, error) { return host, nil }
}

// greeting is an agent that says what it is, in the words given.
func greeting(words string) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, words) })
	return mux
}

// meet connects to a guest over a serial channel and asks it for its greeting.
func meet(ctx context.Context, t *testing.T, dial Dialer) error {
	t.Helper()
	c, err := Connect(ctx, Serial, dial, "secret")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Configure(ctx, wire.Configure{})
	return err
}

func expectGuest(t *testing.T, err error, words string) {
	t.Helper()
	e := api.AsError(err)
	if e == nil || e.Code != api.CodeGuest || !strings.Contains(e.Message, words) || strings.Contains(e.Message, "\n") || len(e.Message) > 4<<10 {
		t.Errorf("got %v, want code guest with %q on one short line", err, words)
	}
}

func TestConversation(t *testing.T) {
	mux := http.NewServeMux()
	got := make(chan string, 2)
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- string(b)
		_, _ = fmt.Fprintf(w, `{"protocol":%d,"uptime":1.5}`, wire.Protocol)
	})
	mux.HandleFunc("POST /poweroff", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = fmt.Fprintf(w, `{"message":"not\nnow\u001b[2J%s"}`, strings.Repeat("!", 50<<10))
	})
	c, err := Connect(t.Context(), Serial, serve(t, mux), "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g, err := c.Configure(t.Context(), wire.Configure{Hostname: "x"})
	if err != nil || g.Uptime != 1.5 || <-got != `{"hostname":"x"}` {
		t.Errorf("configure: %+v, %v", g, err)
	}
	expectGuest(t, c.PowerOff(t.Context()), `power guest off: "notnow[2J!!`)
	select {
	case <-c.Done():
		t.Error("the connection has ended")
	default:
	}
	c.Close()
	c.Close() // twice does no harm
	<-c.Done()
	if _, err := c.Configure(t.Context(), wire.Configure{}); err == nil {
		t.Error("an answer after Close")
	}
}

func TestProtocolRange(t *testing.T) {
	for _, protocol := range []int{-1, wire.MinProtocol - 1, wire.MinProtocol, wire.Protocol, wire.Protocol + 1, 1 << 40} {
		ok := protocol >= wire.MinProtocol && protocol <= wire.Protocol
		err := meet(t.Context(), t, serve(t, greeting(fmt.Sprintf(`{"protocol":%d}`, protocol))))
		if ok {
			if err != nil {
				t.Errorf("protocol %d: %v", protocol, err)
			}
			continue
		}
		expectGuest(t, err, fmt.Sprintf("its agent speaks protocol %d", protocol))
		if e := api.AsError(err); e == nil || e.Hint == "" {
			t.Errorf("protocol %d: no hint", protocol)
		}
	}
}

// TestSilentProtocol has an agent of before the answer to its configuration.
func TestSilentProtocol(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	err := meet(t.Context(), t, serve(t, mux))
	expectGuest(t, err, "its agent speaks protocol 0")
	if e := api.AsError(err); e == nil || e.Hint == "" {
		t.Error("no hint")
	}
}

// TestHostileAnswers has a guest that shakes hands properly and then says, on each
// stream, what it likes.
func TestHostileAnswers(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\n"
	for name, tc := range map[string]struct{ answer, want string }{
		"garbage":             {"\x00\xff rubbish \r\n\r\n", "configure guest: "},
		"nothing":             {"", "configure guest: "},
		"half a head":         {head + "Content-Le", "configure guest: "},
		"half a body":         {head + "Content-Length: 100\r\n\r\n{", "unexpected EOF"},
		"no JSON":             {head + "Content-Length: 2\r\n\r\n<>", "is not understood"},
		"other JSON":          {head + "Content-Length: 2\r\n\r\n[]", "is not understood"},
		"endless head":        {head + strings.Repeat("X: y\r\n", 40<<10), "configure guest: "},
		"one long header":     {head + "X: " + strings.Repeat("y", 1<<20), "configure guest: "},
		"large body":          {head + "Content-Length: 1000000\r\n\r\n" + `{"protocol":2}` + strings.Repeat(" ", 1000000-14) + "x", ""},
		"large body, no JSON": {head + "Content-Length: 1000000\r\n\r\n" + strings.Repeat("[", 1000000), "is not understood"},
		"redirect":            {"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "is not understood"},
		"switch":              {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{}", ""},
		"always go on":        {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000), "configure guest: "},
	} {
		t.Run(name, func(t *testing.T) {
			err := meet(t.Context(), t, hostile(t, func(stream net.Conn) { _, _ = io.WriteString(stream, tc.answer) }))
			if tc.want == "" && err == nil {
				return // what counts is that it ended
			}
			expectGuest(t, err, tc.want)
		})
	}
}

// hostile is a guest that gives each stream, after its request, to answer.
func hostile(t *testing.T, answer func(net.Conn)) Dialer {
	t.Helper()
	host, port := net.Pipe()
	l := wire.Listen(port, "secret")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			stream, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(stream)); err == nil {
				answer(stream)
			}
			_ = stream.Close()
		}
	}()
	t.Cleanup(func() {
		_ = host.Close()
		_ = l.Close()
		<-done
	})
	return func(context.Context) (net.Conn, error) { return host, nil }
}

// TestSilence has guests that never answer: the handshake, or a request.
func TestSilence(t *testing.T) {
	t.Run("handshake", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			host, port := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, port) }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := Connect(ctx, Serial, func(context.Context) (net.Conn, error) { return host, nil }, "secret")
			expectGuest(t, err, "connect to agent: ")
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want a deadline exceeded", err)
			}
			_ = port.Close()
		})
	})
	t.Run("request", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := meet(ctx, t, hostile(t, func(stream net.Conn) {
			cancel() // the caller gives up after the request has come
			_, _ = io.Copy(io.Discard, stream)
		}))
		expectGuest(t, err, "configure guest: ")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want it to be cancelled", err)
		}
	})
	t.Run("dial", func(t *testing.T) {
		_, err := Connect(t.Context(), Serial, func(context.Context) (net.Conn, error) { return nil, io.ErrClosedPipe }, "secret")
		expectGuest(t, err, "connect to agent: ")
	})
}

// TestGuestOpensStream has a guest that begins a stream of its own.
func TestGuestOpensStream(t *testing.T) {
	host, port := net.Pipe()
	t.Cleanup(func() { _ = port.Close() })
	open := make(chan struct{})
	go func() {
		// The handshake is of the host's secret alone; what follows is the guest's.
		l := wire.Listen(port, "secret")
		server := &http.Server{Handler: greeting(fmt.Sprintf(`{"protocol":%d}`, wire.Protocol))}
		go func() { _ = server.Serve(l) }()
		<-open
		// A frame of yamux: version 0, window update, SYN, stream 2, no data.
		_, _ = port.Write([]byte{0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0})
		<-t.Context().Done()
		_ = server.Close()
	}()
	c, err := Connect(t.Context(), Serial, func(context.Context) (net.Conn, error) { return host, nil }, "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	close(open)
	<-c.Done()
	if _, err := c.Configure(t.Context(), wire.Configure{}); err == nil {
		t.Error("the guest is still talked to")
	}
}

// TestStreams is the channel of which each dial is a connection.
func TestStreams(t *testing.T) {
	listener, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: greeting(fmt.Sprintf(`{"uptime":2.5,"protocol":%d}`, wire.Protocol))}
	go func() { _ = server.Serve(listener) }()
	defer func() { _ = server.Close() }()
	c, err := Connect(t.Context(), Stream, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", listener.Addr().String())
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if g, err := c.Configure(t.Context(), wire.Configure{}); err != nil || g.Uptime != 2.5 {
		t.Errorf("configure: %+v, %v", g, err)
	}
}
