package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/image"
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

// large is a layer that does not compress.
func large(t *testing.T, name string, size int) []byte {
	t.Helper()
	data := archive(t, fileEntry(name, int64(size)))
	rand.NewChaCha8([32]byte{byte(size)}).Read(data[512 : 512+size])
	return data
}

// TestPartOfALayerStays pulls a layer that stalls, as a user who gives up and whose
// daemon ends then: the next pull gets only the rest, and somebody else's gets it all.
func TestPartOfALayerStays(t *testing.T) {
	c := hosttest.NewRegistry(t)
	const size = 1 << 20
	ref, ids := c.Push(t, "big:1", ociImage(t, large(t, "big", size)))
	for name, owner := range map[string]uint32{"the same user": 1000, "somebody else": 1001} {
		t.Run(name, func(t *testing.T) {
			m, db, dir := newManager(t)
			m.MaxSize = 10 << 20
			stalled := c.Stall(size / 2)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				_, err := m.Pull(ctx, 1000, api.PullImage{Ref: ref}, nil)
				ended <- err
			}()
			<-stalled
			arrival(t, m, ids[0], size/4)
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "pull image") {
				t.Errorf("got %v", err)
			}
			if n := leftovers(t, db, dir); n != 2 {
				t.Errorf("%d rows and directories, want those of the part", n)
			}
			m = image.New(m.Config) // the next daemon
			if alive, err := m.Alive(t.Context()); err != nil || len(alive) != 1 {
				t.Errorf("the next daemon keeps %v, %v", alive, err)
			}
			before, _ := c.Served(ids[0])
			c.Stall(0)
			_, err := m.Pull(t.Context(), owner, api.PullImage{Ref: ref}, nil)
			check(t, err)
			rest, _ := c.Served(ids[0])
			if most := int64(size + 100_000 - size/4); owner == 1000 && rest > most || owner != 1000 && rest < size {
				t.Errorf("%d bytes were sent after %d", rest, before)
			}
			for _, item := range must2(m.Unused(t.Context()))(t) {
				check(t, item.Remove(t.Context()))
			}
			check(t, m.Remove(t.Context(), owner, ref))
			if n := leftovers(t, db, dir); n != 0 {
				t.Errorf("%d rows and directories are left", n)
			}
		})
	}
}

// TestPartsAreBounded gives up pulls of which two leave as much as a user may have waiting,
// and has a third, and another user's: the oldest part goes.
func TestPartsAreBounded(t *testing.T) {
	const size = 1 << 20
	m, db, dir := newManager(t)
	m.MaxSize = 2*size + size/2
	var ids []string
	for i, owner := range []uint32{1000, 1001, 1000, 1000} {
		c := hosttest.NewRegistry(t)
		ref, blobs := c.Push(t, fmt.Sprintf("big%d:1", i), ociImage(t, large(t, fmt.Sprint("big", i), size+size/10)))
		ids = append(ids, blobs[0])
		stalled := c.Stall(size)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-stalled
			arrival(t, m, blobs[0], size*9/10)
			cancel()
		}()
		if _, err := m.Pull(ctx, owner, api.PullImage{Ref: ref}, nil); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	for i, blob := range ids {
		if here := m.Arrived(blob) > 0; here != (i > 0) {
			t.Errorf("the part of pull %d is here: %t", i, here)
		}
	}
	if n := leftovers(t, db, dir); n != 2*3 {
		t.Errorf("%d rows and directories, want those of three parts", n)
	}
}

// TestDamagedPartIsNotKept has something else in the place of what arrived.
func TestDamagedPartIsNotKept(t *testing.T) {
	c := hosttest.NewRegistry(t)
	const size = 1 << 20
	ref, ids := c.Push(t, "big:1", ociImage(t, large(t, "big", size)))
	m, db, dir := newManager(t)
	m.MaxSize = 10 << 20
	stalled := c.Stall(size / 2)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-stalled
		arrival(t, m, ids[0], size/4)
		cancel()
	}()
	if _, err := m.Pull(ctx, 0, api.PullImage{Ref: ref}, nil); err == nil {
		t.Fatal("a stalled pull came to an end")
	}
	parts, err := filepath.Glob(filepath.Join(dir, "layers", "*", "archive"))
	check(t, err)
	spoil(t, parts[0])
	c.Stall(0)
	if _, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref}, nil); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
	if n := leftovers(t, db, dir); n != 0 {
		t.Errorf("%d rows and directories are left", n)
	}
	_, err = m.Pull(t.Context(), 0, api.PullImage{Ref: ref}, nil)
	check(t, err)
}

// TestSimultaneousPulls pulls images that share layers at the same time: each blob is
// sent once to a user.
func TestSimultaneousPulls(t *testing.T) {
	c := hosttest.NewRegistry(t)
	m, db, dir := newManager(t)
	m.MaxSize = 10 << 20
	shared := [][]byte{large(t, "a", 500_000), large(t, "b", 400_000)}
	var refs, all []string
	for i := range 4 {
		ref, ids := c.Push(t, fmt.Sprintf("img%d:1", i), ociImage(t, append(slices.Clone(shared), large(t, "own", 1000+i))...))
		refs, all = append(refs, ref), append(all, ids...)
	}
	var wg sync.WaitGroup
	for _, ref := range append(refs, refs...) {
		wg.Go(func() {
			if _, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref}, nil); err != nil && api.CodeOf(err) != api.CodeConflict {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range all {
		if _, times := c.Served(id); times != 1 {
			t.Errorf("%s was asked for %d times", id, times)
		}
	}
	if n := leftovers(t, db, dir); n != 2*(2+4) {
		t.Errorf("%d rows and directories, want those of 6 layers", n)
	}
}

// TestProgressOfLayers has a part for each layer, and one step.
func TestProgressOfLayers(t *testing.T) {
	c := hosttest.NewRegistry(t)
	m, _, _ := newManager(t)
	m.MaxSize = 10 << 20
	base := large(t, "a", 300_000)
	ref, _ := c.Push(t, "one:1", ociImage(t, base))
	_, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref}, nil)
	check(t, err)
	ref, ids := c.Push(t, "two:1", ociImage(t, base, large(t, "b", 600_000), large(t, "c", 500_000)))
	var mu sync.Mutex
	seen := map[string][]string{}
	_, err = m.Pull(t.Context(), 0, api.PullImage{Ref: ref}, func(p api.Progress) {
		mu.Lock()
		defer mu.Unlock()
		for _, part := range p.Parts {
			if steps := seen[part.Name]; len(steps) == 0 || steps[len(steps)-1] != part.Step {
				seen[part.Name] = append(steps, part.Step)
			}
		}
	})
	check(t, err)
	for i, id := range ids {
		steps := seen[id[7:19]]
		if i == 0 && !slices.Equal(steps, []string{"there"}) || i > 0 && (!slices.Contains(steps, "get") || steps[len(steps)-1] != "done") {
			t.Errorf("layer %d: %q", i+1, steps)
		}
	}
}

// arrival waits for so much of a blob.
func arrival(t *testing.T, m *image.Manager, blob string, n int64) {
	t.Helper()
	for end := time.Now().Add(time.Minute); m.Arrived(blob) < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%d bytes are here of %s", m.Arrived(blob), blob)
			return
		}
	}
}

func must2[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T { t.Helper(); check(t, err); return v }
}
