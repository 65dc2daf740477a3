package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"banger/api"
	"banger/internal/registry"
)

// serve is a registry on loopback whose answers pass through wrap.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) (host string) {
	t.Helper()
	h := server.New(server.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// push puts an image into a registry and returns its reference.
func push(t *testing.T, host, repo string, img v1.Image, auth authn.Authenticator) string {
	t.Helper()
	ref, err := name.ParseReference(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(auth)); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func sample(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(300_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// compare reads all layers and compares them with those of the image.
func compare(t *testing.T, got registry.Image, want v1.Image) {
	t.Helper()
	m, err := want.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if digest, _ := want.Digest(); digest.String() != got.Manifest || len(got.Layers) != len(m.Layers) {
		t.Fatalf("got %s of %d layers, want %s of %d", got.Manifest, len(got.Layers), digest, len(m.Layers))
	}
	for i, l := range got.Layers {
		r, err := l.Open(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		n, err := io.Copy(sum, r)
		r.Close()
		if digest := "sha256:" + hex.EncodeToString(sum.Sum(nil)); err != nil || n != m.Layers[i].Size || digest != m.Layers[i].Digest.String() {
			t.Errorf("layer %d: %d bytes, %s, %v", i, n, digest, err)
		}
	}
}

func TestFetch(t *testing.T) {
	img := sample(t)
	ref := push(t, serve(t, nil), "a/b:1", img, authn.Anonymous)
	got, err := new(registry.Client).Fetch(t.Context(), ref, "", authn.AuthConfig{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, got, img)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := new(registry.Client).Fetch(t.Context(), ref+"@"+digest.String(), "", authn.AuthConfig{}); err != nil {
		t.Errorf("by tag and digest: %v", err)
	}
	for _, missing := range []string{"a/b:2", "a/c:1"} {
		host, _, _ := strings.Cut(ref, "/")
		if _, err := new(registry.Client).Fetch(t.Context(), host+"/"+missing, "", authn.AuthConfig{}); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%s: %v", missing, err)
		}
	}
}

// TestLogin has a registry that lets in who knows the password.
func TestLogin(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who\nare you"}]}`, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	img := sample(t)
	ref := push(t, host, "private:1", img, &authn.Basic{Username: "ann", Password: "secret"})
	got, err := new(registry.Client).Fetch(t.Context(), ref, "", authn.AuthConfig{Username: "ann", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, got, img)
	for _, auth := range []authn.AuthConfig{{}, {Username: "ann", Password: "wrong"}} {
		_, err := new(registry.Client).Fetch(t.Context(), ref, "", auth)
		if e := api.AsError(err); api.CodeOf(err) != api.CodePermissionDenied || !strings.Contains(e.Hint, "docker login "+host) || strings.Contains(err.Error(), "\n") {
			t.Errorf("as %v: %v", auth, err)
		}
	}
}

// breaking sends no more than so many bytes of a blob at a time; ranges says whether it
// knows them.
func breaking(at int, ranges bool) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				h.ServeHTTP(w, r)
				return
			}
			from := 0
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err != nil || !ranges {
				from = 0
			}
			r.Header.Del("Range")
			whole := httptest.NewRecorder()
			h.ServeHTTP(whole, r)
			data := whole.Body.Bytes()[from:]
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+len(data)-1, from+len(data)))
				w.WriteHeader(http.StatusPartialContent)
			}
			if ranges {
				data = data[:min(len(data), at)]
			} else {
				data = data[:min(len(data), at)]
				at += at // it gets further each time
			}
			_, _ = w.Write(data)
		})
	}
}

func TestBrokenStreamsGoOn(t *testing.T) {
	for what, wrap := range map[string]func(http.Handler) http.Handler{
		"ranges": breaking(100_000, true), "no ranges": breaking(150_000, false),
	} {
		t.Run(what, func(t *testing.T) {
			img := sample(t)
			ref := push(t, serve(t, wrap), "broken:1", img, authn.Anonymous)
			got, err := new(registry.Client).Fetch(t.Context(), ref, "", authn.AuthConfig{})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, got, img)
		})
	}
}

func TestMirrors(t *testing.T) {
	img := sample(t)
	mirror, origin := serve(t, nil), serve(t, nil)
	push(t, mirror, "x:1", img, authn.Anonymous)
	other := sample(t)
	ref := push(t, origin, "y:1", other, authn.Anonymous)
	c := registry.Client{Config: registry.Config{Mirrors: map[string][]string{origin: {"127.0.0.1:1", mirror}}}}
	got, err := c.Fetch(t.Context(), origin+"/x:1", "", authn.AuthConfig{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, got, img)
	if got, err = c.Fetch(t.Context(), ref, "", authn.AuthConfig{}); err != nil {
		t.Fatal(err)
	}
	compare(t, got, other)
	if _, err := c.Fetch(t.Context(), origin+"/z:1", "", authn.AuthConfig{}); api.CodeOf(err) != api.CodeNotFound || !strings.Contains(err.Error(), "mirror 127.0.0.1:1") {
		t.Errorf("nowhere: %v", err)
	}
}

// TestPlatforms has an index of images for several machines, and what tools attest.
func TestPlatforms(t *testing.T) {
	arm, amd, attest := sample(t), sample(t), sample(t)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: attest, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	host := serve(t, nil)
	ref, err := name.ParseReference(host + "/many:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	for arch, want := range map[string]v1.Image{"arm64": arm, "amd64": amd} {
		got, err := new(registry.Client).Fetch(t.Context(), ref.String(), arch, authn.AuthConfig{})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, want)
	}
	if _, err := new(registry.Client).Fetch(t.Context(), ref.String(), "s390x", authn.AuthConfig{}); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("for s390x: %v", err)
	}
}

// TestHostileRegistries has registries lie, go on for ever, and lead elsewhere.
func TestHostileRegistries(t *testing.T) {
	manifest := func(body func(w http.ResponseWriter, r *http.Request)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			body(w, r)
		}
	}
	deep := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","size":1,"digest":"sha256:%s"}]}`, strings.Repeat("a", 64))
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(bytes.Repeat([]byte(" "), 64<<10)); err != nil {
				return
			}
		}
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		}
	}
	var self string
	for what, c := range map[string]struct {
		h    http.HandlerFunc
		code api.Code
		says string
	}{
		"an endless manifest":      {manifest(endless), api.CodeInvalid, "bytes"},
		"indexes without end":      {manifest(deep), api.CodeInvalid, "digest"},
		"garbage":                  {manifest(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }), api.CodeInvalid, "manifest"},
		"another kind of manifest": {manifest(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"schemaVersion":1}`) }), api.CodeInvalid, "manifest"},
		"a file":                   {manifest(redirect("file:///etc/passwd")), api.CodePermissionDenied, "not http"},
		"a circle":                 {manifest(func(w http.ResponseWriter, r *http.Request) { redirect("http://"+self+r.URL.Path)(w, r) }), api.CodeInvalid, "circles"},
		"an error of its own":      {manifest(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no\n\x1b[31m", http.StatusTeapot) }), api.CodeUnavailable, "418"},
	} {
		t.Run(what, func(t *testing.T) {
			s := httptest.NewServer(c.h)
			defer s.Close()
			self = strings.TrimPrefix(s.URL, "http://")
			_, err := new(registry.Client).Fetch(t.Context(), self+"/x:1", "", authn.AuthConfig{})
			if api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("got %v, want %s with %q", err, c.code, c.says)
			}
		})
	}
}

// TestWrongLayers has a manifest whose layer is not what it says.
func TestWrongLayers(t *testing.T) {
	img := sample(t)
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/manifests/") {
				h.ServeHTTP(w, r)
				return
			}
			whole := httptest.NewRecorder()
			h.ServeHTTP(whole, r)
			var m v1.Manifest
			if err := json.Unmarshal(whole.Body.Bytes(), &m); err != nil {
				t.Error(err)
			}
			m.Layers[0].Size = -5
			_ = json.NewEncoder(w).Encode(m)
		})
	})
	ref := push(t, host, "liar:1", img, authn.Anonymous)
	if _, err := new(registry.Client).Fetch(t.Context(), ref, "", authn.AuthConfig{}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a layer of -5 bytes: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := new(registry.Client).Fetch(ctx, "127.0.0.1:1/x", "", authn.AuthConfig{}); err == nil {
		t.Error("a cancelled pull succeeded")
	}
}

func TestFamiliar(t *testing.T) {
	sha := "@sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]string{
		"python": "python", "python:latest": "python", "python:3": "python:3", "docker.io/library/python:3": "python:3",
		"index.docker.io/ann/x": "ann/x", "ghcr.io/ann/x:latest": "ghcr.io/ann/x", "localhost:5000/x:1": "localhost:5000/x:1",
		"python" + sha: "python" + sha, "python:3" + sha: "python" + sha,
	} {
		if got, err := registry.Familiar(ref); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", ref, got, err, want)
		}
	}
	for _, bad := range []string{"", "UPPER/case", "x:", "x@sha256:short", "a b", "../x", "x\n"} {
		if _, err := registry.Familiar(bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
