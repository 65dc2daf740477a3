package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coder/websocket"

	"banger/api"
)

// operate starts an operation that reports a step and ends when goOn is closed.
func (d *daemon) operate(owner uint32, goOn <-chan struct{}, result error) api.Operation {
	return d.vms.ops.Start(owner, "test", "it", func(ctx context.Context, report api.Reporter) error {
		report(api.Progress{Step: "begun"})
		select {
		case <-goOn:
			return result
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func TestWait(t *testing.T) {
	d := started(t, 1000)
	goOn := make(chan struct{})
	op := d.operate(1000, goOn, api.Errorf(api.CodeNoSpace, "full").WithHint("buy a disk"))
	var last api.Progress
	done, err := d.Wait(t.Context(), op.ID, func(p api.Progress) {
		if last = p; p.Step == "begun" {
			close(goOn)
		}
	})
	if e := api.AsError(err); e == nil || e.Code != api.CodeNoSpace || e.Hint != "buy a disk" || done.Status != api.OperationFailed {
		t.Errorf("ended as %+v with %v", done, err)
	}
	if last.Step != "begun" {
		t.Errorf("last progress %+v", last)
	}
	if _, err := d.Wait(t.Context(), op.ID, nil); api.CodeOf(err) != api.CodeNoSpace {
		t.Errorf("wait for one that has ended: %v", err)
	}
	if _, err := d.Wait(t.Context(), "unknown", nil); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("wait for an unknown one: %v", err)
	}
	pull, err := d.PullKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Wait(t.Context(), pull.ID, nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("pull: %v", err)
	}
}

func TestCancel(t *testing.T) {
	d := started(t, 1000)
	op := d.operate(1000, nil, nil)
	if err := d.Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if op, err := d.Wait(t.Context(), op.ID, nil); op.Status != api.OperationCancelled || err == nil {
		t.Errorf("ended as %s, %v", op.Status, err)
	}
}

func TestEndOfContextEndsTheWaitOnly(t *testing.T) {
	d := started(t, 1000)
	goOn := make(chan struct{})
	defer close(goOn)
	op := d.operate(1000, goOn, nil)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := d.Wait(ctx, op.ID, func(api.Progress) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if op, err := d.Operation(t.Context(), op.ID); err != nil || op.Status != api.OperationRunning {
		t.Errorf("operation %s, %v", op.Status, err)
	}
}

func TestOperationsAreTheirOwners(t *testing.T) {
	d := started(t, 1000)
	goOn := make(chan struct{})
	defer close(goOn)
	mine, other := d.operate(1000, goOn, nil), d.operate(1001, goOn, nil)
	if all, err := d.Operations(t.Context()); err != nil || len(all) != 1 || all[0].ID != mine.ID {
		t.Errorf("list: %v, %v", all, err)
	}
	_, getErr := d.Operation(t.Context(), other.ID)
	_, waitErr := d.Wait(t.Context(), other.ID, nil)
	for what, err := range map[string]error{"get": getErr, "wait": waitErr, "cancel": d.Cancel(t.Context(), other.ID)} {
		if api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%s another's: %v", what, err)
		}
	}
	root := started(t, 0)
	theirs := root.operate(1001, goOn, nil)
	if all, err := root.Operations(t.Context()); err != nil || len(all) != 1 || all[0].ID != theirs.ID {
		t.Errorf("list as root: %v, %v", all, err)
	}
}

func TestWaitReconnects(t *testing.T) {
	d := newDaemon(t, 1000)
	stop := d.serve(t)
	goOn := make(chan struct{})
	op := d.operate(1000, goOn, nil)
	restarted := false
	op, err := d.Wait(t.Context(), op.ID, func(api.Progress) {
		if !restarted { // the connection breaks, the registry lives on
			restarted = true
			stop()
			d.serve(t)
			close(goOn)
		}
	})
	if err != nil || op.Status != api.OperationSucceeded || !restarted {
		t.Errorf("ended as %+v with %v", op, err)
	}
}

func TestWaitAcrossARestart(t *testing.T) {
	d, next := newDaemon(t, 1000), newDaemon(t, 1000)
	next.socket = d.socket
	stop := d.serve(t)
	goOn := make(chan struct{})
	defer close(goOn)
	op := d.operate(1000, goOn, nil)
	restarted := false
	_, err := d.Wait(t.Context(), op.ID, func(api.Progress) {
		if !restarted {
			restarted = true
			stop()
			next.serve(t)
		}
	})
	if e := api.AsError(err); e == nil || e.Code != api.CodeUnavailable || e.Hint == "" {
		t.Errorf("wait: %v", err)
	}
}

func TestLease(t *testing.T) {
	d := newDaemon(t, 1000)
	stop := d.serve(t)
	if err := d.Lease(t.Context(), "two"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("lease on an unknown VM: %v", err)
	}
	ended := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- d.Lease(ctx, "one") }()
	if !<-d.vms.leased {
		t.Fatal("lease ended before it began")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("lease given back: %v", err)
	}
	if <-d.vms.leased {
		t.Error("the lease is still held")
	}
	go func() { ended <- d.Lease(t.Context(), "one") }()
	<-d.vms.leased
	stop()
	if err := <-ended; api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("lease at the end of the daemon: %v", err)
	}
	if <-d.vms.leased {
		t.Error("the lease is still held")
	}
}

// TestExec has a WebSocket go through to an agent, and end with the daemon.
func TestExec(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/exec" || r.Host != "agent" {
			t.Errorf("the agent was asked for %s of %s", r.URL, r.Host)
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		for {
			kind, data, err := conn.Read(context.Background())
			if err != nil {
				return
			}
			_ = conn.Write(context.Background(), kind, append([]byte("echo "), data...))
		}
	}))
	defer agent.Close()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("tcp", agent.Listener.Addr().String())
	}}
	defer tr.CloseIdleConnections()
	d := newDaemon(t, 1000)
	d.vms.agent = tr
	stop := d.serve(t)
	conn, _, err := websocket.Dial(t.Context(), "ws://bangerd/v1/vms/one/exec", &websocket.DialOptions{HTTPClient: &http.Client{
		Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", d.socket) }},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := conn.Read(t.Context()); err != nil || string(data) != "echo hello" {
		t.Errorf("read %q, %v", data, err)
	}
	stop()
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("the connection outlives the daemon")
	}
}

type deaf struct{}

func (deaf) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("no echo") }

func TestExecWithoutAnAnswer(t *testing.T) {
	d := started(t, 1000)
	d.vms.agent = deaf{}
	for path, protocol := range map[string]string{"/v1/vms/one/exec": "websocket", "/v1/vms/one/ssh": api.UpgradeStream} {
		resp, text := d.do(t, "GET", path, "", http.Header{"Connection": {"upgrade"}, "Upgrade": {protocol}})
		if resp.StatusCode != api.CodeGuest.HTTPStatus() {
			t.Errorf("%s: %s: %s", path, resp.Status, text)
		}
		resp, text = d.do(t, "GET", path, "", nil)
		if resp.StatusCode != api.CodeInvalid.HTTPStatus() || !strings.Contains(text, protocol) {
			t.Errorf("%s without Upgrade: %s: %s", path, resp.Status, text)
		}
	}
}

// TestFiles copies both ways, with archives that are cut off.
func TestFiles(t *testing.T) {
	d := started(t, 1000)
	for path, want := range map[string]struct {
		text string
		code api.Code
	}{"/whole": {"/whole", ""}, "/changed": {"/changed", api.CodeConflict}, "/broken": {"", api.CodeUnavailable}} {
		files, err := d.ReadFiles(t.Context(), "one", api.ReadFiles{Path: path})
		if path == "/broken" { // so early that there is no answer at all
			if api.CodeOf(err) != want.code {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if string(text) != want.text || api.CodeOf(err) != want.code {
			t.Errorf("%s: %q, %v", path, text, err)
		}
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := d.WriteFiles(t.Context(), "one", api.WriteFiles{Path: "/srv", Name: "it"}, strings.NewReader("archive")); err != nil || d.vms.asked != "write /srv it archive" {
		t.Errorf("write: %v, %q", err, d.vms.asked)
	}
	torn := iotest.ErrReader(api.Errorf(api.CodeConflict, "it became shorter"))
	if err := d.WriteFiles(t.Context(), "one", api.WriteFiles{Path: "/srv"}, io.MultiReader(strings.NewReader("x"), torn)); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("write of what cannot be read: %v", err)
	}
	for _, q := range []api.ReadFiles{{Path: "relative"}, {Path: "/" + strings.Repeat("x", 5000)}, {Path: "/a\x00"}, {Path: "/", Name: "a/b"}} {
		if _, err := d.ReadFiles(t.Context(), "one", q); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%+.50v: %v", q, err)
		}
	}
}
