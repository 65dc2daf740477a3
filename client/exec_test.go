package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"banger/api"
	"banger/internal/agent"
	"banger/internal/guest"
	"banger/internal/guest/wire"
)

// startAgent serves the agent's routes on one end of a pipe, as in a guest on its
// serial port, and returns what dials an exec session through the other.
func startAgent(t *testing.T) (dial func(context.Context) (*websocket.Conn, error), cut func()) {
	t.Helper()
	host, port := net.Pipe()
	l := wire.Listen(port, "secret")
	server := &http.Server{Handler: agent.Handler(func(time.Duration) {})}
	go func() { _ = server.Serve(l) }()
	conn, err := guest.Connect(t.Context(), guest.Serial, func(context.Context) (net.Conn, error) { return host, nil }, "secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		_ = server.Close()
	})
	var mu sync.Mutex
	var last *websocket.Conn
	dial = func(ctx context.Context) (*websocket.Conn, error) {
		ws, _, err := websocket.Dial(ctx, "ws://agent/exec", &websocket.DialOptions{
			HTTPClient: &http.Client{Transport: conn.Transport()}, CompressionMode: websocket.CompressionDisabled,
		})
		if err != nil {
			return nil, err
		}
		ws.SetReadLimit(api.MaxFrame)
		mu.Lock()
		last = ws
		mu.Unlock()
		return ws, nil
	}
	return dial, func() {
		mu.Lock()
		defer mu.Unlock()
		_ = last.CloseNow()
	}
}

func TestExecStatus(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("cases", func(t *testing.T) {
		dial, _ := startAgent(t)
		for name, c := range map[string]struct {
			opts   ExecOptions
			stdout string
			want   api.ExecStatus
		}{
			"success":     {ExecOptions{Command: []string{"sh", "-c", "echo out; echo err >&2"}}, "out\n", api.ExecStatus{}},
			"status":      {ExecOptions{Command: []string{"sh", "-c", "exit 7"}}, "", api.ExecStatus{Code: 7}},
			"signal":      {ExecOptions{Command: []string{"sh", "-c", "kill -TERM $$"}}, "", api.ExecStatus{Signal: "TERM"}},
			"not found":   {ExecOptions{Command: []string{"no-such-command"}}, "", api.ExecStatus{Code: 127}},
			"denied":      {ExecOptions{Command: []string{"/etc/passwd"}}, "", api.ExecStatus{Code: 126}},
			"environment": {ExecOptions{Command: []string{"sh", "-c", `echo "$A $HOME $USER"; pwd`}, Env: []string{"A=b"}, Dir: "/usr"}, "b /root root\n/usr\n", api.ExecStatus{}},
			"user":        {ExecOptions{Command: []string{"id", "-u", "-n"}, User: "nobody"}, "nobody\n", api.ExecStatus{}},
			"uid and gid": {ExecOptions{Command: []string{"sh", "-c", "id -u; id -g"}, User: "4711:4712"}, "4711\n4712\n", api.ExecStatus{}},
			"no input":    {ExecOptions{Command: []string{"cat"}}, "", api.ExecStatus{}},
			"input":       {ExecOptions{Command: []string{"cat"}, Stdin: strings.NewReader("a\x00b")}, "a\x00b", api.ExecStatus{}},
			"ignored":     {ExecOptions{Command: []string{"true"}, Stdin: bytes.NewReader(make([]byte, 4<<20))}, "", api.ExecStatus{}},
			"grandchild":  {ExecOptions{Command: []string{"sh", "-c", "sleep 3 & echo out"}}, "out\n", api.ExecStatus{}},
			"tty":         {ExecOptions{Command: []string{"stty", "size"}, TTY: true, Size: api.WindowSize{Rows: 12, Cols: 34}}, "12 34\r\n", api.ExecStatus{}},
		} {
			t.Run(name, func(t *testing.T) {
				var out bytes.Buffer
				c.opts.Stdout = &out
				got, err := runExec(t.Context(), c.opts, dial)
				if err != nil || got != c.want || out.String() != c.stdout {
					t.Errorf("got %+v, %v, output %q; want %+v, %q", got, err, out.String(), c.want, c.stdout)
				}
			})
		}
	})
}

// TestExecStandstill has the VM stand still for longer than a broken connection is tried
// again.
func TestExecStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		gone := api.Errorf(api.CodeNotFound, "VM: no such VM")
		dials := 0
		e := &execution{opened: true, changed: make(chan struct{})}
		_, err := e.run(t.Context(), func(context.Context) (*websocket.Conn, error) {
			if dials++; time.Since(began) < 10*execRetry {
				return nil, standstill{api.Errorf(api.CodeConflict, "VM is suspended")}
			}
			return nil, gone
		})
		if !errors.Is(err, gone) || dials > 1000 {
			t.Errorf("after %v and %d attempts: %v", time.Since(began), dials, err)
		}
	})
}

func TestExecUnknownUser(t *testing.T) {
	dial, _ := startAgent(t)
	_, err := runExec(t.Context(), ExecOptions{Command: []string{"true"}, User: "nobody-here"}, dial)
	if api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("got %v, want an error with code invalid", err)
	}
}

// TestExecBrokenConnection sends 64 MiB through cat while the connection is cut
// again and again; not a byte may be lost or come twice.
func TestExecBrokenConnection(t *testing.T) {
	dial, cut := startAgent(t)
	const size = 64 << 20
	sent, received := sha256.New(), &cutter{every: size / 8, cut: cut}
	in := io.TeeReader(io.LimitReader(rand.Reader, size), sent)
	reconnects := 0
	got, err := runExec(t.Context(), ExecOptions{
		Command: []string{"cat"}, Stdin: in, Stdout: io.MultiWriter(received),
		Reconnect: func(context.Context) error { reconnects++; return nil },
	}, dial)
	if err != nil || got != (api.ExecStatus{}) {
		t.Fatalf("got %+v, %v", got, err)
	}
	if received.n != size || !bytes.Equal(sent.Sum(nil), received.sum()) {
		t.Errorf("received %d bytes, not those that were sent", received.n)
	}
	if reconnects < 5 {
		t.Errorf("the connection broke %d times only", reconnects)
	}
}

// cutter cuts a connection whenever another part of the output has come.
type cutter struct {
	n, every, next int
	cut            func()
	data           []byte
}

func (c *cutter) Write(b []byte) (int, error) {
	c.n += len(b)
	c.data = append(c.data, b...)
	if c.n > c.next+c.every {
		c.next = c.n
		c.cut()
	}
	return len(b), nil
}

func (c *cutter) sum() []byte { s := sha256.Sum256(c.data); return s[:] }

func TestExecSignalAndResize(t *testing.T) {
	dial, _ := startAgent(t)
	signals, resize := make(chan string, 1), make(chan api.WindowSize, 1)
	out := &watcher{seen: map[string]func(){
		"ready":   func() { resize <- api.WindowSize{Rows: 9, Cols: 8} },
		"9 8\r\n": func() { signals <- "TERM" },
	}}
	got, err := runExec(t.Context(), ExecOptions{
		Command: []string{"sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"},
		TTY:     true, Stdout: out, Resize: resize, Signals: signals,
	}, dial)
	if err != nil || got != (api.ExecStatus{Signal: "TERM"}) {
		t.Errorf("got %+v, %v, output %q", got, err, out.all)
	}
}

// watcher does something once a text has come.
type watcher struct {
	all  string
	seen map[string]func()
}

func (w *watcher) Write(b []byte) (int, error) {
	w.all += string(b)
	for text, do := range w.seen {
		if strings.Contains(w.all, text) {
			delete(w.seen, text)
			do()
		}
	}
	return len(b), nil
}

// TestExecLostSession attaches to a session of a guest that has started again.
func TestExecLostSession(t *testing.T) {
	first, cut := startAgent(t)
	second, _ := startAgent(t)
	dial := first
	out := &watcher{seen: map[string]func(){"ready": func() { dial = second; cut() }}}
	_, err := runExec(t.Context(), ExecOptions{Command: []string{"sh", "-c", "echo ready; sleep 1"}, Stdout: out},
		func(ctx context.Context) (*websocket.Conn, error) { return dial(ctx) })
	if api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("got %v, want an error with code not_found", err)
	}
}

func TestExecCancelled(t *testing.T) {
	dial, _ := startAgent(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out := &watcher{seen: map[string]func(){"ready": cancel}}
	_, err := runExec(ctx, ExecOptions{Command: []string{"sh", "-c", "echo ready; sleep 1"}, Stdout: out}, dial)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled context", err)
	}
}

// Opened comes once, before the command: a signal given there reaches it, and an
// error there means that nothing runs.
func TestExecOpened(t *testing.T) {
	dial, _ := startAgent(t)
	signals := make(chan string, 1)
	opened := 0
	got, err := runExec(t.Context(), ExecOptions{Command: []string{"sleep", "1000"}, Signals: signals, Opened: func() error {
		opened++
		signals <- "TERM"
		return nil
	}}, dial)
	if err != nil || got.Signal != "TERM" || opened != 1 {
		t.Errorf("got %+v, %v; opened %d times", got, err, opened)
	}

	refused := errors.New("refused")
	made := t.TempDir() + "/made"
	_, err = runExec(t.Context(), ExecOptions{Command: []string{"touch", made}, Opened: func() error { return refused }}, dial)
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("the command ran")
	}
}

// Arrived tells all of the input, also where the connection broke.
func TestExecArrived(t *testing.T) {
	dial, cut := startAgent(t)
	const size = 1 << 20
	var arrived, opened int64
	var out bytes.Buffer
	_, err := runExec(t.Context(), ExecOptions{
		Command: []string{"cat"}, Stdin: bytes.NewReader(make([]byte, size)), Stdout: &out,
		Opened: func() error { opened++; return nil },
		Arrived: func(n int64) {
			if arrived < size/2 && n >= size/2 {
				cut()
			}
			if n <= arrived {
				t.Errorf("%d after %d", n, arrived)
			}
			arrived = n
		},
	}, dial)
	if err != nil || out.Len() != size || arrived != size || opened != 1 {
		t.Errorf("%v; %d bytes came back, %d arrived, opened %d times", err, out.Len(), arrived, opened)
	}
}
