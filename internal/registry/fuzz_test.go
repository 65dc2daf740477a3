package registry

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"banger/api"
)

// answering is a registry with one answer for everything.
type answering []byte

func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(a))), Request: req}, nil
}

// FuzzManifest has a registry give anything for a manifest, an index and a config.
func FuzzManifest(f *testing.F) {
	hash := "sha256:" + strings.Repeat("a", 64)
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + hash + `","size":2},"layers":[{"digest":"` + hash + `","size":3}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + hash + `","platform":{"os":"linux","architecture":"amd64","variant":"v2"}},{"digest":"` + hash + `"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		repo, err := name.NewRepository("127.0.0.1:1/x")
		if err != nil {
			t.Fatal(err)
		}
		r := &remote{repo: repo, client: &http.Client{Transport: answering(data)}}
		img, err := r.image(context.Background(), "1", "amd64")
		if code := api.CodeOf(err); err != nil && (code != api.CodeInvalid && code != api.CodeUnsupported || strings.Contains(err.Error(), "\n")) {
			t.Errorf("got %q", err)
		}
		if err == nil { // a document cannot contain its own digest
			t.Errorf("made an image of it: %+v", img)
		}
		if _, err := Choose(data, "amd64"); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("got %q", err)
		}
	})
}
