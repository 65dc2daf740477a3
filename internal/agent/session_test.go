package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"banger/api"
)

func TestMain(m *testing.M) {
	if os.Args[0] == roleSFTP { // the agent's program once more is the test's here
		Main()
		return
	}
	goleak.VerifyTestMain(m)
}

// conn is a client's connection to a session.
type conn struct {
	t  *testing.T
	ws *websocket.Conn
}

func newServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(Handler(func(time.Duration) {}))
	t.Cleanup(server.Close)
	return server
}

func dial(t *testing.T, server *httptest.Server) conn {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), server.URL+"/exec", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	ws.SetReadLimit(api.MaxFrame)
	return conn{t, ws}
}

func (c conn) send(f api.Frame) {
	c.t.Helper()
	if err := c.ws.Write(c.t.Context(), websocket.MessageBinary, f.Marshal()); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns the next frame; ok is false when the connection has ended.
func (c conn) receive() (f api.Frame, ok bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	_, b, err := c.ws.Read(ctx)
	if ctx.Err() != nil {
		c.t.Fatal("no frame came")
	}
	if err != nil {
		return f, false
	}
	if f, err = api.ParseFrame(b); err != nil {
		c.t.Fatal(err)
	}
	return f, true
}

// open begins or attaches to the session id, and awaits the greeting.
func (c conn) open(id byte, o api.ExecOpen) (accepted uint64) {
	c.t.Helper()
	o.ID = strings.Repeat(string(id), 32)
	c.send(api.JSONFrame(api.FrameOpen, 0, o))
	f, ok := c.receive()
	if !ok || f.Type != api.FrameHello {
		c.t.Fatalf("got frame %d %q, %v; want a greeting", f.Type, f.Data, ok)
	}
	return f.Seq
}

// output reads until the exit frame, whose number it returns.
func (c conn) output() (text string, status api.ExecStatus, last uint64) {
	c.t.Helper()
	for {
		f, ok := c.receive()
		if !ok {
			c.t.Fatalf("the connection ended after %q", text)
		}
		switch f.Type {
		case api.FrameStdout, api.FrameStderr:
			text += string(f.Data)
		case api.FrameExit:
			if err := json.Unmarshal(f.Data, &status); err != nil {
				c.t.Fatal(err)
			}
			return text, status, f.Seq
		}
	}
}

func (c conn) expectError(code api.Code) {
	c.t.Helper()
	f, ok := c.receive()
	var e api.Error
	if !ok || f.Type != api.FrameError || json.Unmarshal(f.Data, &e) != nil || e.Code != code {
		c.t.Errorf("got frame %d %q, %v; want an error with code %s", f.Type, f.Data, ok, code)
	}
	if _, ok := c.receive(); ok {
		c.t.Error("the connection goes on after an error")
	}
}

func sh(script string) api.ExecOpen {
	return api.ExecOpen{Spec: api.ExecSpec{Command: []string{"sh", "-c", script}}}
}

// TestReplay attaches again and again: what was not acknowledged comes again, what
// was does not, until the exit is acknowledged.
func TestReplay(t *testing.T) {
	server := newServer(t)
	first := dial(t, server)
	first.open('a', sh("echo one; read x </dev/null; echo two >&2; exit 3"))
	text, status, last := first.output()
	if !strings.Contains(text, "one\n") || !strings.Contains(text, "two\n") || status.Code != 3 {
		t.Fatalf("got %q, %+v", text, status)
	}
	_ = first.ws.CloseNow()
	for range 2 {
		again := dial(t, server)
		again.open('a', api.ExecOpen{Resume: true})
		if got, gotStatus, gotLast := again.output(); got != text || gotStatus != status || gotLast != last {
			t.Errorf("replayed %q, %+v, %d; want %q, %+v, %d", got, gotStatus, gotLast, text, status, last)
		}
	}
	third := dial(t, server)
	third.open('a', api.ExecOpen{Resume: true, After: last - 1})
	if got, _, _ := third.output(); got != "" {
		t.Errorf("what had been written out came again: %q", got)
	}
	third.send(api.Frame{Type: api.FrameAck, Seq: last})
	if _, ok := third.receive(); ok {
		t.Error("the connection goes on after the last acknowledgement")
	}
	gone := dial(t, server)
	gone.send(api.JSONFrame(api.FrameOpen, 0, api.ExecOpen{ID: strings.Repeat("a", 32), Resume: true}))
	gone.expectError(api.CodeNotFound)
}

func TestInputResumes(t *testing.T) {
	server := newServer(t)
	first := dial(t, server)
	o := sh("cat")
	o.Spec.Stdin = true
	if n := first.open('b', o); n != 0 {
		t.Errorf("a new session has input up to %d", n)
	}
	first.send(api.Frame{Type: api.FrameStdin, Seq: 1, Data: []byte("one ")})
	for acked := false; !acked; {
		f, _ := first.receive()
		acked = f.Type == api.FrameStdinAck && f.Seq == 1
	}
	_ = first.ws.CloseNow()
	second := dial(t, server)
	if n := second.open('b', api.ExecOpen{Resume: true}); n != 1 {
		t.Errorf("it has input up to %d, want 1", n)
	}
	second.send(api.Frame{Type: api.FrameStdin, Seq: 1, Data: []byte("once more ")}) // is ignored
	second.send(api.Frame{Type: api.FrameStdin, Seq: 2, Data: []byte("two")})
	second.send(api.Frame{Type: api.FrameStdinEOF, Seq: 3})
	text, status, last := second.output()
	if text != "one two" || status.Code != 0 {
		t.Errorf("got %q, %+v", text, status)
	}
	second.send(api.Frame{Type: api.FrameAck, Seq: last})
}

// TestTakeover attaches a second connection while the first is there.
func TestTakeover(t *testing.T) {
	server := newServer(t)
	first := dial(t, server)
	o := sh("read x; echo got $x")
	o.Spec.Stdin = true
	first.open('c', o)
	second := dial(t, server)
	second.open('c', api.ExecOpen{Resume: true})
	if f, ok := first.receive(); ok {
		t.Errorf("the first connection goes on with frame %d", f.Type)
	}
	second.send(api.Frame{Type: api.FrameStdin, Seq: 1, Data: []byte("it\n")})
	text, _, last := second.output()
	if text != "got it\n" {
		t.Errorf("got %q", text)
	}
	second.send(api.Frame{Type: api.FrameAck, Seq: last})
}

func TestBadFrames(t *testing.T) {
	server := newServer(t)
	long := strings.Repeat("x", 32)
	for name, f := range map[string]api.Frame{
		"not open":     {Type: api.FrameStdin, Seq: 1},
		"no JSON":      {Type: api.FrameOpen, Data: []byte("{")},
		"short id":     api.JSONFrame(api.FrameOpen, 0, api.ExecOpen{ID: "x"}),
		"unknown user": api.JSONFrame(api.FrameOpen, 0, api.ExecOpen{ID: long, Spec: api.ExecSpec{User: "nobody-here"}}),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, server)
			c.send(f)
			c.expectError(api.CodeInvalid)
		})
	}
	for name, bad := range map[string][]api.Frame{
		"gap in the input": {{Type: api.FrameStdin, Seq: 2}},
		"unknown type":     {{Type: 99}},
		"open twice":       {api.JSONFrame(api.FrameOpen, 0, api.ExecOpen{ID: long})},
		"bad size":         {{Type: api.FrameResize, Data: []byte("{")}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, server)
			o := sh("exec sleep 60")
			o.Spec.Stdin = true
			c.open('d', o)
			for _, f := range bad {
				c.send(f)
			}
			f, ok := c.receive()
			for ok && f.Type != api.FrameError {
				f, ok = c.receive()
			}
			if !ok {
				t.Error("no error came")
			}
			end := dial(t, server) // the session is not harmed
			end.open('d', api.ExecOpen{Resume: true})
			end.send(api.Frame{Type: api.FrameSignal, Data: []byte("NOSUCH")}) // is ignored
			end.send(api.Frame{Type: api.FrameSignal, Data: []byte("KILL")})
			_, status, last := end.output()
			if status.Signal != "KILL" {
				t.Errorf("it ended as %+v", status)
			}
			end.send(api.Frame{Type: api.FrameAck, Seq: last})
			_, _ = end.receive()
		})
	}
}

// TestWindows fills both directions of a session without a client that reads.
func TestWindows(t *testing.T) {
	s := &session{changed: make(chan struct{}), gone: make(chan struct{})}
	s.drop = func() { s.goneOnce.Do(func() { close(s.gone) }) }
	chunk := make([]byte, api.MaxChunk)
	filled := make(chan int)
	go func() {
		n := 0
		for s.put(api.Frame{Type: api.FrameStdout, Data: chunk}) {
			n++
			if n == api.ExecWindow/api.MaxChunk || n == api.ExecWindow/api.MaxChunk+2 {
				filled <- n
			}
		}
		close(filled)
	}()
	<-filled
	s.mu.Lock()
	if s.size != api.ExecWindow {
		t.Errorf("%d bytes of output are kept, want %d", s.size, api.ExecWindow)
	}
	s.mu.Unlock()
	s.ack(2) // makes room for two more
	<-filled
	s.drop()
	if _, more := <-filled; more {
		t.Error("output was taken after the end")
	}

	var err error
	seq := uint64(0)
	for ; err == nil && seq < 100; seq++ {
		err = s.accept(api.Frame{Type: api.FrameStdin, Seq: seq + 1, Data: chunk})
	}
	if api.CodeOf(err) != api.CodeInvalid || s.inSize > maxInput || s.inSize < api.ExecWindow {
		t.Errorf("%d bytes of input were taken, then %v", s.inSize, err)
	}
	s.closeInput()
	if s.inSize != 0 || s.inDone != s.inSeq {
		t.Errorf("closed input keeps %d bytes", s.inSize)
	}
	if err := s.accept(api.Frame{Type: api.FrameStdin, Seq: s.inSeq + 1, Data: chunk}); err != nil || s.inSize != 0 {
		t.Errorf("closed input took more: %v", err)
	}
}

// TestExpiry has sessions whose clients do not come back.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &session{changed: make(chan struct{}), gone: make(chan struct{})}
		s.drop = func() { s.timer(0, nil); s.goneOnce.Do(func() { close(s.gone) }) }
		number, _ := s.attach()
		time.Sleep(24 * time.Hour) // attached, it stays
		s.detach(number)
		time.Sleep(keepExited - time.Second)
		number, _ = s.attach() // in time
		s.detach(number - 1)   // a connection that was taken over long ago
		time.Sleep(24 * time.Hour)
		select {
		case <-s.gone:
			t.Fatalf("gone after %v", time.Since(start))
		default:
		}
		s.detach(number)
		before := time.Now()
		<-s.gone
		if kept := time.Since(before); kept != keepExited {
			t.Errorf("kept for %v, want %v", kept, keepExited)
		}
	})
}

// TestTerminalWithoutInput runs readers of a terminal that has no input, or an input
// that ends in the middle of a line: each of them reads an end.
func TestTerminalWithoutInput(t *testing.T) {
	server := newServer(t)
	for i, tc := range []struct {
		script, input, want string
	}{
		{"cat; cat; echo end", "", "end\r\n"},
		{"sleep 0.3; cat; echo end", "", "end\r\n"},
		{"stty -echo; echo ready; cat; echo; cat; echo end", "half a line", "half a line"},
		{"stty eof ^E; cat; echo end", "", "end\r\n"},
	} {
		c := dial(t, server)
		o := sh(tc.script)
		o.Spec.TTY, o.Spec.Stdin = true, tc.input != ""
		c.open('e'+byte(i), o)
		if tc.input != "" {
			c.send(api.Frame{Type: api.FrameStdin, Seq: 1, Data: []byte(tc.input)})
			c.send(api.Frame{Type: api.FrameStdinEOF, Seq: 2})
		}
		text, status, last := c.output()
		if !strings.Contains(text, tc.want) || !strings.HasSuffix(text, "end\r\n") || status.Code != 0 {
			t.Errorf("%s: got %q, %+v", tc.script, text, status)
		}
		c.send(api.Frame{Type: api.FrameAck, Seq: last})
		_, _ = c.receive()
	}
}

func TestTooManySessions(t *testing.T) {
	ss := &sessions{image: &image{}, byID: map[string]*session{}}
	for i := range maxSessions {
		ss.byID[fmt.Sprint(i)] = nil
	}
	if _, err := ss.open(api.ExecOpen{ID: "one more"}); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("got %v, want a conflict", err)
	}
}
