package e2e

import (
	"bytes"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"banger/internal/hosttest"
)

// TestPullAfterADeath kills the daemon while the second of two layers arrives. The
// next pull gets the rest of it and nothing of the first, nothing is there twice, and
// nothing stays.
func TestPullAfterADeath(t *testing.T) {
	const size = 8 << 20
	big := make([]byte, size)
	_, _ = rand.Read(big)
	img := empty.Image
	for _, data := range [][]byte{layerOf(t, []byte("x"), "bin/banger"), layerOf(t, big, "bin/banger")} {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := hosttest.NewRegistry(t)
	ref, layers := r.Push(t, "two:1", img)
	h := hosttest.New(t)
	h.Must(t, "image", "list")

	stalled := r.Stall(size / 2)
	first := h.Command(t.Context(), "image", "pull", ref)
	var said bytes.Buffer
	first.Stderr = &said
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	<-stalled
	arrived := func() (most int64) {
		archives, _ := filepath.Glob(filepath.Join(h.Paths.State, "layers", "*", "archive"))
		for _, a := range archives {
			if info, err := os.Stat(a); err == nil {
				most = max(most, info.Size())
			}
		}
		return most
	}
	for end := time.Now().Add(time.Minute); arrived() < size/2-(1<<20) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	here := arrived()
	h.KillDaemon(t)
	if err := first.Wait(); err == nil || strings.Count(said.String(), "banger: ") != 1 {
		t.Errorf("the command whose daemon died: %v\n%s", err, said.String())
	}

	r.Stall(0)
	h.Must(t, "image", "pull", "--quiet", ref)
	if n, _ := r.Served(layers[1]); n > size+(64<<10)-here || n == 0 {
		t.Errorf("%d bytes were sent of a layer of %d, of which %d were here", n, size, here)
	}
	if dirs, err := os.ReadDir(filepath.Join(h.Paths.State, "layers")); err != nil || len(dirs) != 2 {
		t.Errorf("%d directories for two layers, %v", len(dirs), err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Paths.State, "layers", "*", "partial.json")); len(left) > 0 {
		t.Errorf("marks of what is there wholly: %q", left)
	}
	h.Must(t, "image", "rm", ref)
	nothingLeft(t, h)
}
