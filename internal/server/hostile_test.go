package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

// raw sends bytes and returns the status of the answer and its body.
func (d *daemon) raw(t *testing.T, request string) (status, body string) {
	t.Helper()
	c, err := net.Dial("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var sending sync.WaitGroup
	sending.Go(func() { _, _ = io.WriteString(c, request) }) // it may be refused before its end
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Error(err)
	}
	c.Close()
	sending.Wait()
	return resp.Status, string(text)
}

// TestPadding has what pads an archive come when the archive has been there for a while:
// the caller must not find the connection closed.
func TestPadding(t *testing.T) {
	d := started(t, 1000)
	c, err := net.Dial("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(c, text); err != nil {
			t.Error(err)
		}
	}
	send("PUT /v1/images/early HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/octet-stream\r\nContent-Length: 3000\r\n\r\n")
	send(strings.Repeat("x", 1000))
	time.Sleep(100 * time.Millisecond)
	send(strings.Repeat("\x00", 1000))
	time.Sleep(100 * time.Millisecond)
	send(strings.Repeat("\x00", 1000))
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode/100 != 2 {
		t.Errorf("%+v, %v", resp, err)
	}
}

// TestOddRequests sends what no client would: each is answered by an error, and
// the daemon goes on serving.
func TestOddRequests(t *testing.T) {
	d := started(t, 1000)
	const end = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	long := strings.Repeat("x", 40<<10)
	for name, tc := range map[string]struct {
		request, status string
		code            api.Code // empty: net/http refuses it before it is a request
	}{
		"no HTTP":             {"\x00\x01\x02\r\n\r\n", "400", ""},
		"no host":             {"GET /v1/vms HTTP/1.1\r\n\r\n", "400", ""},
		"flood of headers":    {"GET /v1/vms HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: "+strings.Repeat("a", 1000)+"\r\n", 1000) + "\r\n", "431", ""},
		"two lengths":         {"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "400", ""},
		"unknown coding":      {"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: pigeon\r\n\r\n{}", "501", ""},
		"huge path":           {"GET /v1/vms/" + long + end, "404", api.CodeNotFound},
		"huge path, no route": {"GET /" + long + end, "404", api.CodeNotFound},
		"bad UTF-8 in a path": {"GET /v1/vms/%ff%fe" + end, "404", api.CodeNotFound},
		"NUL in a path":       {"GET /v1/vms/%00" + end, "404", api.CodeNotFound},
		"line in a path":      {"GET /v1/vms/a%0ab" + end, "404", api.CodeNotFound},
		"dots in a path":      {"GET /v1/../v1/vms" + end, "404", api.CodeNotFound},
		"slashes in a path":   {"GET /v1//vms" + end, "404", api.CodeNotFound},
		"slash at the end":    {"GET /v1/vms/" + end, "404", api.CodeNotFound},
		"asterisk":            {"OPTIONS *" + end, "404", api.CodeNotFound},
		"unknown method":      {"BREW /v1/vms" + end, "404", api.CodeNotFound},
		"another host's URL":  {"GET http://example.com/v1/vms/two" + end, "404", api.CodeNotFound},
		"connect":             {"CONNECT example.com:443" + end, "404", api.CodeNotFound},
		"wrong content type": {"POST /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n\r\n<a/>",
			"400", api.CodeInvalid},
		"deep JSON": {fmt.Sprintf("POST /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", 200000, strings.Repeat("[", 200000)),
			"400", api.CodeInvalid},
		"chunks without an end": {"POST /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400", api.CodeInvalid},
		"negative window":       {"GET /v1/system HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: -1\r\n\r\n", "400", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := d.raw(t, tc.request)
			if !strings.HasPrefix(status, tc.status+" ") {
				t.Errorf("%q, want %s\n%.300s", status, tc.status, body)
			}
			var e api.Error
			if err := json.Unmarshal([]byte(body), &e); tc.code != "" && (err != nil || e.Code != tc.code || len(e.Message) > 2*maxMessage) {
				t.Errorf("%v, code %q, a message of %d bytes: %.300s", err, e.Code, len(e.Message), body)
			}
			if _, err := d.System(t.Context()); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestHEADIsNoRoute(t *testing.T) {
	d := started(t, 1000)
	for _, path := range []string{"/v1/vms", "/v1/vms/one/lease", "/v1/nothing"} {
		if resp, _ := d.do(t, "HEAD", path, "", nil); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

func TestWrongMethodSaysWhichWouldDo(t *testing.T) {
	d := started(t, 1000)
	resp, text := d.do(t, "PUT", "/v1/vms", "", nil)
	if resp.Header.Get("Allow") != "GET, POST" || !strings.Contains(text, "it takes GET, POST") {
		t.Errorf("%s, Allow %q: %s", resp.Status, resp.Header.Get("Allow"), text)
	}
}

// pipes is a listener whose connections are made in memory, so that time is that
// of a bubble (testing/synctest).
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// TestSlowCallers has callers who stop in the middle: the daemon gives up on them.
func TestSlowCallers(t *testing.T) {
	for name, tc := range map[string]struct {
		request string
		within  time.Duration
		status  string // empty: the connection just ends
	}{
		"no request":     {"", idleTimeout + headerTimeout, ""},
		"half a header":  {"GET /v1/vms HTTP/1.1\r\nHo", headerTimeout + time.Second, "400"},
		"half a body":    {"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", time.Minute, "400"},
		"half an upload": {"PUT /v1/images/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", uploadPause + time.Minute, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDaemon(t, 0)
				l := make(pipes)
				ctx, cancel := context.WithCancel(t.Context())
				var serving sync.WaitGroup
				serving.Go(func() {
					h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						d.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, d.uid)))
					})
					if err := Serve(ctx, l, h, slog.New(slog.DiscardHandler)); err != nil {
						t.Error(err)
					}
				})
				client, server := net.Pipe()
				l <- server
				began := time.Now()
				if _, err := io.WriteString(client, tc.request); err != nil {
					t.Error(err)
				}
				resp, err := http.ReadResponse(bufio.NewReader(client), nil)
				took, status := time.Since(began), ""
				if err == nil {
					status, _, _ = strings.Cut(resp.Status, " ")
				}
				if took > tc.within || status != tc.status {
					t.Errorf("after %v: %q, %v; want %q within %v", took, status, err, tc.status, tc.within)
				}
				client.Close()
				cancel()
				serving.Wait()
			})
		})
	}
}

// TestOneUsersConnectionsAreBounded has one user take all connections that a user
// gets: others, and root, still come in.
func TestOneUsersConnectionsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	var uid uint32
	l := fair(inner, func(net.Conn) (uint32, error) { return uid, nil })
	accept := func(as uint32) net.Conn {
		t.Helper()
		out, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		uid = as
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	first := accept(1000)
	l.open[1000] = maxConnections
	refused, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	// The refused one comes before this one, of a user with none.
	uids := []uint32{1000, 1001}
	l.uid = func(net.Conn) (u uint32, err error) { u, uids = uids[0], uids[1:]; return u, nil }
	other := accept(0)
	defer other.Close()
	if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many: %v", err)
	}
	if l.open[1001] != 1 {
		t.Errorf("counted: %v", l.open)
	}
	first.Close()
	first.Close() // counts once
	if l.open[1000] != maxConnections-1 {
		t.Errorf("after a close: %d", l.open[1000])
	}
	l.uid = func(net.Conn) (uint32, error) { return 0, nil }
	if c := accept(0); l.open[0] != 0 {
		t.Error("root's are counted")
	} else {
		c.Close()
	}
}

func TestAnyAcceptIsAnsweredInJSON(t *testing.T) {
	d := started(t, 1000)
	for _, accept := range []string{"text/xml", "application/cbor", ";;;", strings.Repeat("a/b,", 1000)} {
		resp, text := d.do(t, "GET", "/v1/system", "", http.Header{"Accept": {accept}})
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("Accept %.20s: %s, %s: %s", accept, resp.Status, resp.Header.Get("Content-Type"), text)
		}
	}
}

// TestManyAtOneOperation follows and cancels one operation from many sides.
func TestManyAtOneOperation(t *testing.T) {
	d := started(t, 1000)
	op := d.operate(1000, nil, nil)
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			if ended, err := d.Wait(t.Context(), op.ID, nil); err == nil || ended.Status != api.OperationCancelled {
				t.Errorf("wait: %+v, %v", ended, err)
			}
		})
		callers.Go(func() {
			if err := d.Cancel(t.Context(), op.ID); err != nil {
				t.Errorf("cancel: %v", err)
			}
		})
	}
	callers.Wait()
}

// TestOthersObjectsAreNotFound asks every route about a VM and an operation of
// somebody else, as the document describes the route.
func TestOthersObjectsAreNotFound(t *testing.T) {
	d := started(t, 1001)
	goOn := make(chan struct{})
	defer close(goOn)
	op := d.operate(1000, goOn, nil)
	doc, _ := registered()
	for pattern, described := range described(doc) {
		method, path, _ := strings.Cut(pattern, " ")
		asked := strings.NewReplacer("{vm}", "one", "{id}", op.ID).Replace(path)
		if asked == path {
			continue
		}
		t.Run(pattern, func(t *testing.T) {
			asked, body := asked, leastBody(t, doc, described)
			query := url.Values{}
			for _, p := range described.Parameters {
				if p.In == "query" && p.Required {
					query.Set(p.Name, map[bool]string{true: "/", false: "1"}[p.Name == "path"])
				}
			}
			asked += "?" + query.Encode()
			resp, text := d.do(t, method, asked, body, nil)
			var e api.Error
			if err := json.Unmarshal([]byte(text), &e); err != nil || e.Code != api.CodeNotFound {
				t.Errorf("%s: %s, %v", resp.Status, text, err)
			}
		})
	}
	if got, ok := d.vms.ops.Get(op.ID); !ok || got.Status != api.OperationRunning {
		t.Errorf("the operation is %s now", got.Status)
	}
}

// leastBody is a body with what op's schema requires, all of it text.
func leastBody(t *testing.T, doc *huma.OpenAPI, op *huma.Operation) string {
	t.Helper()
	if op.RequestBody == nil || op.RequestBody.Content["application/json"] == nil {
		return ""
	}
	fields := map[string]string{}
	for _, name := range doc.Components.Schemas.SchemaFromRef(op.RequestBody.Content["application/json"].Schema.Ref).Required {
		fields[name] = "x"
	}
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLongErrorsAreCut has a service fail with a text that is as long as a guest
// or an archive likes.
func TestLongErrorsAreCut(t *testing.T) {
	d := started(t, 1000)
	d.vms.err = errors.New(strings.Repeat("ü", 1<<20))
	_, err := d.VM(t.Context(), "one")
	if e := api.AsError(err); e == nil || e.Code != api.CodeInternal || len(e.Message) > 2*maxMessage || !strings.HasSuffix(e.Message, "ü ...") {
		t.Errorf("%.100v", err)
	}
}
