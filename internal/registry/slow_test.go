package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/api"
	"banger/internal/registry"
)

// impatient is for registries that are slow on purpose.
var impatient = registry.Patience{Answer: time.Second, Document: 2 * time.Second, Window: time.Second, Pause: time.Millisecond}

// trickle sends a text again and again, for ever.
func trickle(w http.ResponseWriter, r *http.Request, text string) {
	for {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stalledHeader is an answer whose header does not end.
func stalledHeader(w http.ResponseWriter, r *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	text := "HTTP/1.1 200 OK\r\nX-Long: "
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
		text = "x"
		time.Sleep(10 * time.Millisecond)
	}
}

// TestSlowRegistries has a registry take its time at each step of a pull. It is given up,
// by name.
func TestSlowRegistries(t *testing.T) {
	t.Parallel()
	hash := "sha256:" + strings.Repeat("a", 64)
	slowly := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			trickle(w, r, text)
		}
	}
	const much = 4 << 10
	var all sync.WaitGroup // they wait, at the same time
	for what, c := range map[string]struct {
		at   string // the path that is slow
		slow http.HandlerFunc
		says string
	}{
		"a header":                  {"/v2/", stalledHeader, "timeout"},
		"an error":                  {"/v2/", slowly(http.StatusTeapot, "x"), "hardly sends"},
		"a token":                   {"/token", slowly(http.StatusOK, "x"), "hardly sends"},
		"a token of much":           {"/token", slowly(http.StatusOK, strings.Repeat(" ", 200)), "takes more than 2s"},
		"the header of a manifest":  {"/manifests/1", stalledHeader, "timeout"},
		"a manifest":                {"/manifests/1", slowly(http.StatusOK, "x"), "hardly sends"},
		"a manifest of much":        {"/manifests/1", slowly(http.StatusOK, strings.Repeat(" ", much)), "takes more than 2s"},
		"a config":                  {"/blobs/" + hash, slowly(http.StatusOK, "x"), "hardly sends"},
		"a token without an end":    {"/token", endless, "exceeds"},
		"a token that is a message": {"/token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{\n\t\n}", strings.Repeat("\n", 9999)) }, "no token"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, c.at):
				c.slow(w, r)
			case c.at == "/token" && r.Header.Get("Authorization") == "":
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
				w.WriteHeader(http.StatusUnauthorized)
			case strings.Contains(r.URL.Path, "/manifests/"):
				fmt.Fprintf(w, `{"schemaVersion":2,"config":{"digest":%q,"size":2}}`, hash)
			}
		}))
		defer s.Close()
		host := strings.TrimPrefix(s.URL, "http://")
		all.Go(func() {
			client := registry.Client{Config: registry.Config{Patience: impatient}}
			_, err := client.Fetch(t.Context(), host+"/x:1", "", authn.AuthConfig{})
			if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "pull "+host) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("%s: got %v, want that it %q", what, err, c.says)
			}
		})
	}
	all.Wait()
}

func endless(w http.ResponseWriter, r *http.Request) {
	text := strings.Repeat(" ", 64<<10)
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
	}
}

// lazy is a registry with an image that is slow in some answers once that is pushed.
func lazy(t *testing.T, slow func(path string) bool, h http.HandlerFunc) (ref string, img v1.Image) {
	t.Helper()
	var pushed atomic.Bool
	host := serve(t, func(whole http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if pushed.Load() && slow(r.URL.Path) {
				h(w, r)
				return
			}
			whole.ServeHTTP(w, r)
		})
	})
	img = sample(t)
	ref = push(t, host, "slow:1", img, authn.Anonymous)
	pushed.Store(true)
	return ref, img
}

// TestGreetings has a registry with much to say at the beginning, which nobody needs.
func TestGreetings(t *testing.T) {
	t.Parallel()
	for what, greet := range map[string]http.HandlerFunc{
		"slowly": func(w http.ResponseWriter, r *http.Request) { trickle(w, r, "x") },
		"much":   endless,
	} {
		t.Run(what, func(t *testing.T) {
			ref, img := lazy(t, func(path string) bool { return path == "/v2/" }, greet)
			client := registry.Client{Config: registry.Config{Patience: impatient}}
			got, err := client.Fetch(t.Context(), ref, "", authn.AuthConfig{})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, got, img)
		})
	}
}

// TestSlowLayers has layers of which so little comes at a time that they are never
// there. That is asked for again some times, and not for ever.
func TestSlowLayers(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	for what, c := range map[string]struct {
		slow http.HandlerFunc
		says string
	}{
		"byte by byte": {func(w http.ResponseWriter, r *http.Request) { trickle(w, r, "x") }, "hardly sends"},
		"no byte":      {func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); <-r.Context().Done() }, "hardly sends"},
		"a header":     {stalledHeader, "timeout"},
		"an error": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			trickle(w, r, "x")
		}, "hardly sends"},
		"an end": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "short") }, "breaks off at byte"},
	} {
		var layer string
		var asked atomic.Int64
		ref, img := lazy(t, func(path string) bool { return layer != "" && strings.HasSuffix(path, layer) }, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			c.slow(w, r)
		})
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		client := registry.Client{Config: registry.Config{Patience: impatient}}
		got, err := client.Fetch(t.Context(), ref, "", authn.AuthConfig{})
		if err != nil {
			t.Fatal(err)
		}
		layer = m.Layers[0].Digest.Hex
		host, _, _ := strings.Cut(ref, "/")
		all.Go(func() {
			r, err := got.Layers[0].Open(t.Context(), 0)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "pull "+host) {
				t.Errorf("%s: got %v, want that it %q", what, err, c.says)
			}
			if n := asked.Load(); n != 6 {
				t.Errorf("%s: it was asked %d times", what, n)
			}
		})
	}
	all.Wait()
}
