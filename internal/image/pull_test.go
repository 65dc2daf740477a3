package image_test

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"banger/api"
)

// TestPullGoesOn pulls an image of which one layer breaks off for good, then again
// when the registry is well: what was whole is not fetched a second time.
func TestPullGoesOn(t *testing.T) {
	var ill atomic.Bool
	var blobs atomic.Int64
	var last v1.Hash
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
			if ill.Load() && strings.HasSuffix(r.URL.Path, last.Hex) {
				http.Error(w, "gone", http.StatusNotFound)
				return
			}
		}
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	img := ociImage(t, archive(t, fileEntry("a", 1000)), archive(t, fileEntry("b", 1000)), archive(t, fileEntry("c", 1000)))
	layers, err := img.Layers()
	check(t, err)
	last, err = layers[2].Digest()
	check(t, err)
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/three:1")
	check(t, err, remote.Write(ref, img))

	m, db, dir := newManager(t)
	ill.Store(true)
	if _, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref.String()}, nil); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("an ill registry: %v", err)
	}
	if images, err := m.List(t.Context(), 0); err != nil || len(images) != 0 {
		t.Errorf("half an image is visible: %v, %v", images, err)
	}
	if n := leftovers(t, db, dir); n != 4 {
		t.Errorf("%d rows and directories, want those of two whole layers", n)
	}
	ill.Store(false)
	blobs.Store(0)
	got, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref.String()}, nil)
	check(t, err)
	if n := blobs.Load(); n != 2 { // the config, the third layer
		t.Errorf("%d blobs were fetched", n)
	}
	// Somebody moves the tag, while a VM could have the image.
	other := ociImage(t, archive(t, fileEntry("d", 10)))
	check(t, remote.Write(ref, other))
	again, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref.String()}, nil)
	check(t, err)
	if again.ID == got.ID || again.Name != got.Name {
		t.Errorf("after a push: %s %s, was %s %s", again.Name, again.ID, got.Name, got.ID)
	}
	if n := leftovers(t, db, dir); n != 2 {
		t.Errorf("%d rows and directories, want those of the new layer", n)
	}
	if _, err := m.Import(t.Context(), 0, "plain", bytes.NewReader(archive(t, fileEntry("d", 10))), nil); err != nil {
		t.Error(err)
	}
}
