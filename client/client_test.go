package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
)

// serve answers every request on path with h.
func serve(t *testing.T, path string, h http.HandlerFunc) {
	t.Helper()
	t.Chdir(filepath.Dir(path)) // so that the address is short
	l, err := net.Listen("unix", filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
}

func socket(t *testing.T) string { return filepath.Join(t.TempDir(), "sock") }

func TestNoDaemon(t *testing.T) {
	missing := socket(t)
	dead := socket(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{missing, dead, filepath.Join(t.TempDir(), strings.Repeat("x", 200), "sock")} {
		_, err := New(path).System(t.Context())
		e := api.AsError(err)
		if e == nil || e.Code != api.CodeUnavailable || !strings.HasPrefix(e.Message, "bangerd does not answer on "+path) || e.Hint == "" {
			t.Errorf("%s: %#v", path, e)
		}
	}
}

const nobody = 65534

// TestNotAllowed calls itself as another user, since root may connect to anything.
func TestNotAllowed(t *testing.T) {
	const env = "BANGER_TEST_SOCKET"
	if path := os.Getenv(env); path != "" {
		_, err := New(path).System(t.Context())
		if e := api.AsError(err); e == nil || e.Code != api.CodePermissionDenied || !strings.Contains(e.Hint, "sudo") {
			t.Errorf("%#v", e)
		}
		return
	}
	path := socket(t)
	serve(t, path, func(http.ResponseWriter, *http.Request) { t.Error("the request came through") })
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNotAllowed$", "-test.v")
	cmd.Env = append(os.Environ(), env+"="+path)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}

func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 50))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sock")
	serve(t, path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"version":"v"}`)) })
	if sys, err := New(path).System(t.Context()); err != nil || sys.Version != "v" {
		t.Errorf("%+v, %v", sys, err)
	}
}

func TestOddAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		code   api.Code
	}{
		"error without a code": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "boo", http.StatusTeapot) }, api.CodeInternal},
		"redirect":             {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, api.CodeInternal},
		"no JSON":              {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("boo")) }, api.CodeInternal},
		"a broken connection":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, api.CodeUnavailable},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("["))
		}, api.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			path := socket(t)
			serve(t, path, tc.answer)
			_, one := New(path).System(t.Context())
			_, list := New(path).VMs(t.Context())
			for _, err := range []error{one, list} {
				if _, ok := errors.AsType[*api.Error](err); !ok || api.CodeOf(err) != tc.code {
					t.Errorf("%#v, want code %s", err, tc.code)
				}
			}
		})
	}
}

func TestLists(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                          "",
		`[{"name":"a"},{"name":"b"}]`: "a b",
		`[{"name":"a"}`:               "internal",
		`[{"name":"a"},`:              "internal",
		`[{"name":"a"} {"name":"b"}]`: "internal",
		`[{"name":1}]`:                "internal",
		`{"name":"a"}`:                "internal",
		`null`:                        "internal",
		``:                            "internal",
	} {
		path := socket(t)
		serve(t, path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
		vms, err := New(path).VMs(t.Context())
		var got []string
		for _, vm := range vms {
			got = append(got, vm.Name)
		}
		if err != nil {
			got = append(got, string(api.CodeOf(err)))
		}
		if strings.Join(got, " ") != want || err == nil && vms == nil {
			t.Errorf("%s: %v, %v; want %q", text, got, err, want)
		}
	}
}

func TestWaitGivesUp(t *testing.T) {
	c := New(socket(t))
	c.pause = time.Microsecond
	if _, err := c.Wait(t.Context(), "x", nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("%v", err)
	}
}

func TestEventsAreBounded(t *testing.T) {
	path := socket(t)
	serve(t, path, func(w http.ResponseWriter, _ *http.Request) {
		chunk := []byte(strings.Repeat("x", 64<<10))
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if _, err := New(path).Wait(t.Context(), "x", nil); api.CodeOf(err) != api.CodeInternal {
		t.Errorf("%v", err)
	}
}

func TestEndOfContext(t *testing.T) {
	path := socket(t)
	ctx, cancel := context.WithCancel(t.Context())
	serve(t, path, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := New(path).System(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
