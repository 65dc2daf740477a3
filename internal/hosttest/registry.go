package hosttest

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is a registry of images on loopback that counts what it sends, and stalls
// where it is told to.
type Registry struct {
	Host string // with its port

	mu      sync.Mutex
	served  map[string]int64 // bytes, by the digest of the blob
	asked   map[string]int
	limit   int64
	stalled chan struct{}
}

// NewRegistry serves an empty registry until the test ends.
func NewRegistry(t testing.TB) *Registry {
	r := &Registry{}
	r.Stall(0)
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.mu.Lock()
			r.asked[path.Base(req.URL.Path)]++
			r.mu.Unlock()
			w = &counted{w, req, r}
		}
		h.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	r.Host = strings.TrimPrefix(s.URL, "http://")
	return r
}

// Push puts an image there and returns its reference and the digests of its layers.
func (r *Registry) Push(t testing.TB, repo string, img v1.Image) (ref string, layers []string) {
	t.Helper()
	parsed, err := name.ParseReference(r.Host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img); err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		layers = append(layers, l.Digest.String())
	}
	return parsed.String(), layers
}

// Stall begins to count anew, and has the registry say nothing more after so many
// bytes of a blob; never if it is 0. The channel is closed when it does for the first time.
func (r *Registry) Stall(limit int64) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served, r.asked, r.limit, r.stalled = map[string]int64{}, map[string]int{}, limit, make(chan struct{})
	return r.stalled
}

// Served tells how many bytes of a blob have been sent, and how often it was asked for.
func (r *Registry) Served(blob string) (bytes int64, times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served[blob], r.asked[blob]
}

// grant says how much of n bytes of a blob may be sent.
func (r *Registry) grant(blob string, n int) (most int, stalls bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	most = n
	if left := r.limit - r.served[blob]; r.limit > 0 && int64(n) > left {
		most, stalls = int(left), true
	}
	r.served[blob] += int64(most)
	return most, stalls
}

func (r *Registry) tellStalled() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.stalled:
	default:
		close(r.stalled)
	}
}

// counted is the answer that sends a blob.
type counted struct {
	http.ResponseWriter
	req *http.Request
	r   *Registry
}

func (w *counted) Write(b []byte) (int, error) {
	most, stalls := w.r.grant(path.Base(w.req.URL.Path), len(b))
	n, err := w.ResponseWriter.Write(b[:most])
	if stalls {
		w.ResponseWriter.(http.Flusher).Flush()
		w.r.tellStalled()
		<-w.req.Context().Done()
		err = io.ErrClosedPipe
	}
	return n, err
}
