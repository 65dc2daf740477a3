package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"banger/api"
	"banger/internal/hosttest"
)

// layerOf is the archive of a layer with the files named, whose content is their name.
func layerOf(t *testing.T, program []byte, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		content := []byte(n)
		if n == "bin/banger" {
			content = program
		}
		err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o755, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// private is a registry on loopback that lets in ann alone, and what her docker login
// leaves.
func private(t *testing.T, img v1.Image) (ref string, login []byte) {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	parsed, err := name.ParseReference(host + "/team/deep:1")
	if err == nil {
		err = remote.Write(parsed, img, remote.WithAuth(&authn.Basic{Username: "ann", Password: "secret"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return parsed.String(), fmt.Appendf(nil, `{"auths":{%q:{"auth":"YW5uOnNlY3JldA=="}}}`, host)
}

// TestLayersInAVM boots an image of more layers than a VM has disks for, saved as by
// docker save and pulled from a registry, whose layers add, replace and remove.
func TestLayersInAVM(t *testing.T) {
	config := t.TempDir()
	h := hosttest.NewSeeded(t, "DOCKER_CONFIG="+config)
	program, err := os.ReadFile(h.Command(t.Context()).Path)
	if err != nil {
		t.Fatal(err)
	}
	layers := [][]string{{"bin/banger", "data/a", "data/b", "data/old/x", "data/gone/y"}, {"data/.wh.a"}, {"data/c", "data/.wh.gone"}}
	for i := range 6 {
		layers = append(layers, []string{fmt.Sprintf("data/%d", i)})
	}
	layers = append(layers, []string{"data/old/.wh..wh..opq", "data/old/z"}, []string{"data/.wh.3", "data/gone/again"})
	img := empty.Image
	for _, names := range layers {
		data := layerOf(t, program, names...)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ref, err := name.NewTag("example.org/deep:1")
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := tarball.Write(ref, img, &saved); err != nil {
		t.Fatal(err)
	}
	if r := h.Pipe(t, saved.String(), "image", "import", "deep", "-"); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	pulled, login := private(t, img)
	if r := h.Banger(t, "vm", "run", "--rm", "--image", pulled, "--", "banger", "--version"); r.Exit != api.CodePermissionDenied.ExitStatus() || !strings.Contains(r.Stderr, "docker login") {
		t.Errorf("without a login: exit status %d\n%s", r.Exit, r.Stderr)
	}
	if err := os.WriteFile(filepath.Join(config, "config.json"), login, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := h.Must(t, "image", "pull", "--quiet", pulled); got != pulled {
		t.Errorf("pulled %q, want %s", got, pulled)
	}
	h.Must(t, "vm", "run", "--name", "deep", "--pull", "always", "--image", pulled, "--", "banger", "--version")
	in := tar.NewReader(strings.NewReader(h.Must(t, "vm", "cp", "deep:/data", "-")))
	var got []string
	for {
		hdr, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSuffix(hdr.Name, "/"))
	}
	slices.Sort(got)
	want := []string{"data", "data/0", "data/1", "data/2", "data/4", "data/5", "data/b", "data/c", "data/gone", "data/gone/again", "data/old", "data/old/z"}
	if !slices.Equal(got, want) {
		t.Errorf("in the VM: %q, want %q", got, want)
	}
	h.Must(t, "vm", "delete", "--force", "deep")
	h.Must(t, "image", "rm", "deep", pulled)
	nothingLeft(t, h)
}
