package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/client"
)

// do sends a request that the client would not send.
func (d *daemon) do(t *testing.T, method, path, body string, header http.Header) (*http.Response, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", d.socket)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://bangerd"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestErrorsOnTheWire(t *testing.T) {
	d := started(t, 1000)
	for name, tc := range map[string]struct {
		method, path, body string
		header             http.Header
		code               api.Code
		message            string // contained in it
	}{
		"unknown route":       {"GET", "/v1/nothing", "", nil, api.CodeNotFound, "GET /v1/nothing: no such route"},
		"outside the version": {"GET", "/", "", nil, api.CodeNotFound, "no such route"},
		"wrong method":        {"PATCH", "/v1/vms", "", nil, api.CodeNotFound, "no such route"},
		"wrong type":          {"POST", "/v1/vms", `{"cpus":"many"}`, nil, api.CodeInvalid, "body.cpus"},
		"unknown field":       {"POST", "/v1/vms", `{"cpu":1}`, nil, api.CodeInvalid, "body.cpu"},
		"no JSON":             {"POST", "/v1/vms", "{\n", nil, api.CodeInvalid, ""},
		"no body":             {"POST", "/v1/vms", "", nil, api.CodeInvalid, "body"},
		"too much body":       {"POST", "/v1/vms", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, nil, api.CodeInvalid, ""},
		"negative timeout":    {"POST", "/v1/vms/one/stop", `{"timeout":-1}`, nil, api.CodeInvalid, "timeout -1"},
		"endless timeout":     {"POST", "/v1/vms/one/stop", `{"timeout":1e300}`, nil, api.CodeInvalid, "timeout"},
		"wrong query":         {"DELETE", "/v1/vms/one?force=maybe", "", nil, api.CodeInvalid, "force"},
		"browser":             {"GET", "/v1/vms", "", http.Header{"Origin": {"http://localhost"}}, api.CodePermissionDenied, "browsers"},
		"coded":               {"GET", "/v1/vms/two", "", nil, api.CodeNotFound, `VM "two": no such VM`},
		"panic":               {"GET", "/v1/vms/panic", "", nil, api.CodeInternal, "panic: ouch"},
		"panic in a stream":   {"GET", "/v1/vms/panic/logs", "", nil, api.CodeInternal, "panic: ouch"},
		"logs":                {"GET", "/v1/vms/two/logs", "", nil, api.CodeNotFound, "two"},
		"lease":               {"GET", "/v1/vms/two/lease", "", nil, api.CodeNotFound, "two"},
		"exec":                {"GET", "/v1/vms/two/exec", "", nil, api.CodeNotFound, "two"},
		"events":              {"GET", "/v1/operations/x/events", "", nil, api.CodeNotFound, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, text := d.do(t, tc.method, tc.path, tc.body, tc.header)
			var e api.Error
			if err := json.Unmarshal([]byte(text), &e); err != nil {
				t.Fatalf("%s: %q: %v", resp.Status, text, err)
			}
			if e.Code != tc.code || resp.StatusCode != tc.code.HTTPStatus() || !strings.Contains(e.Message, tc.message) || e.Message == "" {
				t.Errorf("%s: %s, want code %s and a message with %q", resp.Status, text, tc.code, tc.message)
			}
			if strings.Contains(e.Message, "\n") {
				t.Errorf("message of several lines: %q", e.Message)
			}
			if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
				t.Errorf("content type %q", ct)
			}
		})
	}
}

func TestClientGetsTheServicesErrors(t *testing.T) {
	d := started(t, 1000)
	for _, code := range []api.Code{api.CodeNotFound, api.CodeAlreadyExists, api.CodeInvalid, api.CodeConflict, api.CodeUnavailable,
		api.CodeNoSpace, api.CodePermissionDenied, api.CodeUnsupported, api.CodeGuest, api.CodeInternal} {
		d.vms.err = api.Errorf(code, "do it: no <reason>").WithHint("do\nsomething else")
		_, err := d.VM(t.Context(), "one")
		if e := api.AsError(err); e == nil || e.Code != code || e.Message != "do it: no <reason>" || e.Hint != "do\nsomething else" {
			t.Errorf("%s: got %#v", code, e)
		}
	}
	if _, err := d.VM(t.Context(), ""); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("VM without a name: %v", err)
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	type call func(ctx context.Context, d *daemon) error
	removeKernel := func(ctx context.Context, d *daemon) error { return d.RemoveKernel(ctx, "k") }
	importKernel := func(ctx context.Context, d *daemon) error {
		_, err := d.ImportKernel(ctx, "k", strings.NewReader("deb"))
		return err
	}
	pullKernel := func(ctx context.Context, d *daemon) error { _, err := d.PullKernel(ctx); return err }
	getVM := func(ctx context.Context, d *daemon) error { _, err := d.VM(ctx, "one"); return err }
	for name, tc := range map[string]struct {
		call call
		uid  uint32
		code api.Code // "" for success
	}{
		"kernel import by root":   {importKernel, 0, ""},
		"kernel import by a user": {importKernel, 1000, api.CodePermissionDenied},
		"kernel remove by root":   {removeKernel, 0, api.CodeInternal}, // reaches the manager
		"kernel remove by a user": {removeKernel, 1000, api.CodePermissionDenied},
		"kernel pull by a user":   {pullKernel, 1000, ""},
		"shutdown by root":        {func(ctx context.Context, d *daemon) error { return d.Shutdown(ctx) }, 0, ""},
		"shutdown by a user":      {func(ctx context.Context, d *daemon) error { return d.Shutdown(ctx) }, 1000, api.CodePermissionDenied},
		"VM by root":              {getVM, 0, ""},
		"VM by its owner":         {getVM, 1000, ""},
		"VM by another":           {getVM, 1001, api.CodeNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			d := started(t, tc.uid)
			err := tc.call(t.Context(), d)
			if (err == nil) != (tc.code == "") || err != nil && api.CodeOf(err) != tc.code {
				t.Errorf("error %v, want code %q", err, tc.code)
			}
			if n := len(d.shutdown); (n == 1) != (name == "shutdown by root") {
				t.Errorf("%d shutdowns", n)
			}
		})
	}
}

func TestUnknownCallerIsRefused(t *testing.T) {
	w := httptest.NewRecorder()
	newDaemon(t, 0).handler.ServeHTTP(w, httptest.NewRequest("GET", "/v1/system", nil))
	if w.Code != http.StatusForbidden {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

func TestCredentialsOfThePeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	seen := make(chan uint32, 1)
	go func() {
		served <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen <- caller(r.Context())
			_, _ = w.Write([]byte("{}"))
		}), slog.New(slog.DiscardHandler))
	}()
	if _, err := client.New(path).System(t.Context()); err != nil {
		t.Error(err)
	}
	if uid := <-seen; uid != uint32(os.Getuid()) {
		t.Errorf("uid %d, want %d", uid, os.Getuid())
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestRequestsReachTheService(t *testing.T) {
	d := started(t, 1000)
	ctx := t.Context()
	for want, call := range map[string]func() (api.Operation, error){
		"create x":        func() (api.Operation, error) { _, op, err := d.CreateVM(ctx, api.CreateVM{Name: "x"}); return op, err },
		"start":           func() (api.Operation, error) { return d.StartVM(ctx, "one") },
		"stop 1.5s so":    func() (api.Operation, error) { return d.StopVM(ctx, "one", api.StopVM{Timeout: 1.5, Reason: "so"}) },
		"kill":            func() (api.Operation, error) { return d.KillVM(ctx, "one") },
		"start cold":      func() (api.Operation, error) { return d.ColdStartVM(ctx, "one") },
		"pause":           func() (api.Operation, error) { return d.PauseVM(ctx, "one") },
		"resume":          func() (api.Operation, error) { return d.ResumeVM(ctx, "one") },
		"suspend":         func() (api.Operation, error) { return d.SuspendVM(ctx, "one") },
		"delete":          func() (api.Operation, error) { return d.DeleteVM(ctx, "one", false) },
		"delete by force": func() (api.Operation, error) { return d.DeleteVM(ctx, "one", true) },
	} {
		op, err := call()
		if err != nil || d.vms.asked != want || op.Kind != want {
			t.Errorf("%s: service was asked %q, operation %q, error %v", want, d.vms.asked, op.Kind, err)
		}
	}
	if vm, err := d.VM(ctx, "one"); err != nil || vm.Name != "one" {
		t.Errorf("get VM: %+v, %v", vm, err)
	}
	if all, err := d.VMs(ctx); err != nil || len(all) != 1 {
		t.Errorf("list VMs: %v, %v", all, err)
	}
	if sys, err := d.System(ctx); err != nil || sys.Version != "test" {
		t.Errorf("system: %+v, %v", sys, err)
	}
	if all, err := d.Images(ctx); err != nil || all == nil || len(all) != 0 {
		t.Errorf("list images: %v, %v", all, err)
	}
	if all, err := d.Kernels(ctx); err != nil || len(all) != 1 || !all[0].Default {
		t.Errorf("list kernels: %v, %v", all, err)
	}
	for _, name := range []string{"a/b:c d", ".", ".."} {
		if i, err := d.Image(ctx, name); err != nil || i.Name != name {
			t.Errorf("image %q: %+v, %v", name, i, err)
		}
	}
	log, err := d.Logs(ctx, "one", api.ReadLogs{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if text, err := io.ReadAll(log); err != nil || string(text) != "booted\n" {
		t.Errorf("logs: %q, %v", text, err)
	}
}

func TestUploads(t *testing.T) {
	d := started(t, 0)
	const size = 8 << 20
	img, err := d.ImportImage(t.Context(), "big", bytes.NewReader(make([]byte, size)))
	if err != nil || img.Name != "big" || img.Size != size {
		t.Errorf("import: %+v, %v", img, err)
	}
	// A daemon that refuses early must be understood, and not be sent the body.
	body := &io.LimitedReader{R: zeros{}, N: size}
	if _, err := d.ImportImage(t.Context(), "refused", body); api.CodeOf(err) != api.CodeAlreadyExists || body.N != size {
		t.Errorf("refused import: %v after %d bytes", err, size-body.N)
	}
	if _, err := d.ImportImage(t.Context(), "bad", zeros{}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("import of what is refused on the way: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("x"), errReader{})
	if _, err := d.ImportImage(t.Context(), "broken", broken); err == nil || !strings.Contains(err.Error(), "torn") {
		t.Errorf("import of what cannot be read: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("torn tape") }

func TestOpenAPI(t *testing.T) {
	d := started(t, 1000)
	_, text := d.do(t, "GET", "/v1/openapi.json", "", nil)
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	for _, route := range []string{"post /v1/vms", "get /v1/vms/{vm}/exec", "put /v1/images/{name}", "get /v1/operations/{id}/events", "post /v1/kernels/pull"} {
		method, path, _ := strings.Cut(route, " ")
		if doc.Paths[path][method] == nil {
			t.Errorf("%s is not described", route)
		}
	}
}
