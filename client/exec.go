package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"

	"banger/api"
)

// ExecOptions say what Exec runs in a VM, and with what it connects it.
type ExecOptions struct {
	Command []string // empty: the user's shell
	Image   bool     // the image's own command; Command is empty
	Detach  bool     // Exec returns when it has started; its output goes to the console. No input, no TTY
	Env     []string // NAME=value, beyond those of the image
	Dir     string   // empty: the image's directory, else the user's home
	User    string   // name or uid, with :group or :gid; empty: the image's, else root
	TTY     bool
	Size    api.WindowSize // of the terminal at first

	Stdin          io.Reader // nil: empty input. A Read under way at the end is left behind
	Stdout, Stderr io.Writer // nil: discarded. With TTY all output comes to Stdout

	Resize  <-chan api.WindowSize
	Signals <-chan string // names without SIG: INT, TERM, ...

	// Opened is called once, before the command is sent to the guest. From then on
	// it may run there and what comes by Signals reaches it, while the end of ctx
	// leaves it behind. An error ends Exec before anything is sent. It may be nil.
	Opened func() error
	// Arrived is told how many bytes of Stdin the guest has taken. It may be nil.
	Arrived func(n int64)

	// Reconnect is called when the connection has broken, to bring the daemon
	// back; then the session is attached to again. It may be nil.
	Reconnect func(context.Context) error
}

const (
	execRetry    = 60 * time.Second // for how long a broken connection is tried again
	execPause    = 200 * time.Millisecond
	execStill    = time.Second // between attempts to reach a VM that stands still
	execWrite    = 30 * time.Second
	execInFrames = 4096 // unacknowledged input, in frames
)

// Exec runs a command in a VM and returns how it ended. Output arrives complete
// and once, though the connection break: the command runs on in the guest, which
// keeps what was not acknowledged, for five minutes of its own. While the VM is paused or
// suspended Exec waits. An error means that the command's end is not known.
func (c *Client) Exec(ctx context.Context, ref string, opts ExecOptions) (api.ExecStatus, error) {
	address, err := request{path: []string{"vms", ref, "exec"}}.url()
	if err != nil {
		return api.ExecStatus{}, err
	}
	return runExec(ctx, opts, func(ctx context.Context) (*websocket.Conn, error) {
		ws, err := dialExec(ctx, c.dial, address)
		if api.CodeOf(err) == api.CodeConflict && c.standsStill(ctx, ref) {
			err = standstill{err}
		}
		return ws, err
	})
}

// standstill is the error of a dial to a VM that will go on where it is.
type standstill struct{ error }

func (s standstill) Unwrap() error { return s.error }

// standsStill says whether a VM is paused or suspended, or about to be or to wake.
func (c *Client) standsStill(ctx context.Context, ref string) bool {
	vm, err := c.VM(ctx, ref)
	return err == nil && slices.Contains([]api.VMState{api.VMPaused, api.VMSuspending, api.VMSuspended, api.VMStarting}, vm.State)
}

// dialExec opens the WebSocket of an exec session.
func dialExec(ctx context.Context, dial func(context.Context) (net.Conn, error), address string) (*websocket.Conn, error) {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableKeepAlives: true,
	}
	ctx, cancel := context.WithTimeout(ctx, execWrite)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, address, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, CompressionMode: websocket.CompressionDisabled,
	})
	if err == nil {
		ws.SetReadLimit(api.MaxFrame)
		return ws, nil
	}
	if resp != nil && resp.Body != nil { // websocket.Dial keeps the body's first KiB
		var e api.Error
		if json.NewDecoder(resp.Body).Decode(&e) == nil && e.Code != "" {
			return nil, &e
		}
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return nil, e
	}
	return nil, api.Errorf(api.CodeUnavailable, "exec: %w", err)
}

func runExec(ctx context.Context, opts ExecOptions, dial func(context.Context) (*websocket.Conn, error)) (api.ExecStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var id [16]byte
	_, _ = rand.Read(id[:])
	e := &execution{opts: opts, id: hex.EncodeToString(id[:]), changed: make(chan struct{})}
	if opts.Stdin != nil {
		go e.readStdin(ctx)
	}
	if opts.Resize != nil || opts.Signals != nil {
		go e.control(ctx)
	}
	return e.run(ctx, dial)
}

// run attaches to the session until its end, again where the connection breaks.
func (e *execution) run(ctx context.Context, dial func(context.Context) (*websocket.Conn, error)) (api.ExecStatus, error) {
	var broken time.Time
	for {
		ws, err := dial(ctx)
		if err == nil {
			before := e.greetings
			err = e.attach(ctx, ws)
			if e.status != nil {
				return *e.status, nil
			}
			if e.greetings > before {
				broken = time.Time{}
			}
		}
		if ctx.Err() != nil {
			return api.ExecStatus{}, context.Cause(ctx)
		}
		if e.final(err) {
			return api.ExecStatus{}, err
		}
		pause := execPause
		if _, still := errors.AsType[standstill](err); still {
			broken, pause = time.Time{}, execStill // the session stands still too, for as long as it takes
		} else if broken.IsZero() {
			broken = time.Now()
		} else if time.Since(broken) > execRetry {
			return api.ExecStatus{}, err
		}
		if err := e.reconnect(ctx, pause); err != nil {
			return api.ExecStatus{}, err
		}
	}
}

// permanent is an error that another attempt does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// final says whether there is no use in another attempt after err.
func (e *execution) final(err error) bool {
	if _, ok := errors.AsType[permanent](err); ok {
		return true
	}
	if !e.opened {
		return true // nothing was sent: there is nothing to go back to
	}
	code := api.CodeOf(err)
	_, carries := errors.AsType[*api.Error](err)
	return carries && slices.Contains([]api.Code{
		api.CodeNotFound, api.CodePermissionDenied, api.CodeInvalid, api.CodeUnsupported,
	}, code)
}

func (e *execution) reconnect(ctx context.Context, pause time.Duration) error {
	if e.opts.Reconnect != nil {
		if err := e.opts.Reconnect(ctx); err != nil {
			return err
		}
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// execution is the client's end of a session, over all of its connections.
type execution struct {
	opts      ExecOptions
	id        string
	opened    bool   // the open frame was sent
	greetings int    // how often the agent has said hello
	written   uint64 // the last output that was written out; only attach changes it
	arrived   int64  // bytes of the input; only attach changes it
	status    *api.ExecStatus

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever anything below changes
	input   []api.Frame   // not acknowledged, in order
	inSize  int
	inSeq   uint64
	urgent  []api.Frame // resizes and signals to send
	toAck   uint64
}

func (e *execution) change(do func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	do()
	close(e.changed)
	e.changed = make(chan struct{})
}

// await runs try under mu after every change until it returns true; false: ctx ended.
func (e *execution) await(ctx context.Context, try func() bool) bool {
	for {
		e.mu.Lock()
		if try() {
			e.mu.Unlock()
			return true
		}
		changed := e.changed
		e.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (e *execution) readStdin(ctx context.Context) {
	buf := make([]byte, 32<<10)
	for {
		if !e.await(ctx, func() bool { return e.inSize+len(buf) <= api.ExecWindow && len(e.input) < execInFrames }) {
			return
		}
		n, err := e.opts.Stdin.Read(buf)
		if n > 0 {
			e.queueInput(api.Frame{Type: api.FrameStdin, Data: slices.Clone(buf[:n])})
		}
		if err != nil {
			e.queueInput(api.Frame{Type: api.FrameStdinEOF})
			return
		}
	}
}

func (e *execution) queueInput(f api.Frame) {
	e.change(func() {
		e.inSeq++
		f.Seq = e.inSeq
		e.input = append(e.input, f)
		e.inSize += len(f.Data)
	})
}

func (e *execution) control(ctx context.Context) {
	resize, signals := e.opts.Resize, e.opts.Signals
	for {
		var f api.Frame
		select {
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			f = api.JSONFrame(api.FrameResize, 0, size)
		case name, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			f = api.Frame{Type: api.FrameSignal, Data: []byte(name)}
		case <-ctx.Done():
			return
		}
		e.change(func() {
			if len(e.urgent) < execInFrames {
				e.urgent = append(e.urgent, f)
			}
		})
	}
}

// attach opens or resumes the session on a connection and serves it to its end.
func (e *execution) attach(ctx context.Context, ws *websocket.Conn) error {
	var writer sync.WaitGroup
	defer writer.Wait()
	defer func() { _ = ws.CloseNow() }() // before the wait: it ends a write that stands still
	open := api.ExecOpen{ID: e.id, Resume: e.greetings > 0, After: e.written}
	o := e.opts
	open.Spec = api.ExecSpec{Command: o.Command, Image: o.Image, Detach: o.Detach, Env: o.Env, Dir: o.Dir, User: o.User, TTY: o.TTY, Size: o.Size, Stdin: o.Stdin != nil}
	first := api.JSONFrame(api.FrameOpen, 0, open)
	if len(first.Data)+64 > api.MaxOpen {
		return permanent{api.Errorf(api.CodeInvalid, "exec: command and environment are larger than %d bytes", api.MaxOpen)}
	}
	if !e.opened && o.Opened != nil {
		if err := o.Opened(); err != nil {
			return err
		}
	}
	e.opened = true
	if err := send(ctx, ws, first); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	greeted := false
	for {
		_, b, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		f, err := api.ParseFrame(b)
		if err != nil {
			return permanent{api.Errorf(api.CodeGuest, "%w", err)}
		}
		switch f.Type {
		case api.FrameHello:
			if greeted {
				return permanent{api.Errorf(api.CodeGuest, "exec: the agent greeted twice")}
			}
			greeted = true
			e.greetings++
			if o.Detach {
				e.status = &api.ExecStatus{}
				return ws.Close(websocket.StatusNormalClosure, "")
			}
			writer.Go(func() {
				if e.sendAll(ctx, ws, f.Seq) != nil {
					cancel()
				}
			})
		case api.FrameStdinAck:
			e.inputDone(f.Seq)
		case api.FrameError:
			var remote api.Error
			if err := json.Unmarshal(f.Data, &remote); err != nil || remote.Message == "" {
				remote = *api.Errorf(api.CodeGuest, "exec: the agent gave an error that is not understood")
			}
			return permanent{&remote}
		case api.FrameStdout, api.FrameStderr, api.FrameExit:
			if err := e.output(f); err != nil {
				return permanent{err}
			}
			if e.status != nil {
				cancel()
				writer.Wait()
				_ = send(context.WithoutCancel(ctx), ws, api.Frame{Type: api.FrameAck, Seq: f.Seq})
				return ws.Close(websocket.StatusNormalClosure, "")
			}
		}
	}
}

// output writes a chunk of output out, once.
func (e *execution) output(f api.Frame) error {
	if f.Seq <= e.written {
		return nil
	}
	if f.Seq != e.written+1 {
		return api.Errorf(api.CodeGuest, "exec: output %d came after %d", f.Seq, e.written)
	}
	if f.Type == api.FrameExit {
		var status api.ExecStatus
		if err := json.Unmarshal(f.Data, &status); err != nil {
			return api.Errorf(api.CodeGuest, "exec: the exit status is not understood: %w", err)
		}
		e.status = &status
		return nil
	}
	w := e.opts.Stdout
	if f.Type == api.FrameStderr {
		w = e.opts.Stderr
	}
	if _, err := cmp.Or(w, io.Discard).Write(f.Data); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	e.written = f.Seq
	e.change(func() { e.toAck = f.Seq })
	return nil
}

func (e *execution) inputDone(seq uint64) {
	before := e.arrived
	e.change(func() {
		n := 0
		for n < len(e.input) && e.input[n].Seq <= seq {
			e.inSize -= len(e.input[n].Data)
			e.arrived += int64(len(e.input[n].Data))
			n++
		}
		e.input = slices.Delete(e.input, 0, n)
	})
	if e.arrived > before && e.opts.Arrived != nil {
		e.opts.Arrived(e.arrived)
	}
}

// sendAll sends acknowledgements, control frames and the input after number
// after, until ctx ends.
func (e *execution) sendAll(ctx context.Context, ws *websocket.Conn, after uint64) error {
	var acked uint64
	for {
		var next api.Frame
		urgent := false
		ok := e.await(ctx, func() bool {
			if e.toAck > acked {
				acked = e.toAck
				next = api.Frame{Type: api.FrameAck, Seq: acked}
				return true
			}
			if len(e.urgent) > 0 {
				next, e.urgent = e.urgent[0], e.urgent[1:]
				urgent = true
				return true
			}
			for _, f := range e.input {
				if f.Seq > after {
					next, after = f, f.Seq
					return true
				}
			}
			return false
		})
		if !ok {
			return nil
		}
		if err := send(ctx, ws, next); err != nil {
			if urgent { // the next connection's
				e.change(func() { e.urgent = slices.Insert(e.urgent, 0, next) })
			}
			return err
		}
	}
}

// send writes a frame. It is not cut short by ctx, which would break the
// connection for the frames after it, but by a time of its own.
func send(ctx context.Context, ws *websocket.Conn, f api.Frame) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execWrite)
	defer cancel()
	return ws.Write(ctx, websocket.MessageBinary, f.Marshal())
}
