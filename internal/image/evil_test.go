package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/internal/image"
	"banger/internal/registry"
)

// evil is a registry that says what it is told to: blobs and manifests by digest, the
// manifest by tag, and whatever a test has in the place of an answer.
type evil struct {
	host    string
	docs    map[string][]byte
	instead map[string]http.HandlerFunc // by digest
}

func newEvil(t *testing.T) *evil {
	t.Helper()
	e := &evil{docs: map[string][]byte{}, instead: map[string]http.HandlerFunc{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := path.Base(r.URL.Path)
		if h := e.instead[id]; h != nil {
			h(w, r)
		} else if doc, ok := e.docs[id]; ok {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(doc))
		} else if r.URL.Path != "/v2/" {
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	e.host = strings.TrimPrefix(s.URL, "http://")
	return e
}

// has adds a blob or a manifest.
func (e *evil) has(data []byte) (digest string) {
	digest = digestOf(data)
	e.docs[digest] = data
	return digest
}

func (e *evil) hasJSON(t *testing.T, v any) (digest string) {
	t.Helper()
	data, err := json.Marshal(v)
	check(t, err)
	return e.has(data)
}

type object = map[string]any

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
)

// image adds an image of layers, which change may change, and returns the digest of its
// manifest.
func (e *evil) image(t *testing.T, change func(config, manifest object), layers ...[]byte) string {
	t.Helper()
	diffs, descs := []any{}, []any{}
	for _, l := range layers {
		zipped := packed(t, l, "gzip", "-cn")
		diffs = append(diffs, digestOf(l))
		descs = append(descs, object{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": e.has(zipped), "size": len(zipped)})
	}
	config := object{"os": "linux", "architecture": "amd64", "rootfs": object{"type": "layers", "diff_ids": diffs}}
	manifest := object{"schemaVersion": 2, "mediaType": manifestType, "layers": descs}
	if change != nil {
		change(config, manifest)
	}
	manifest["config"] = object{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": e.hasJSON(t, config), "size": 2}
	return e.hasJSON(t, manifest)
}

// layerIn is what a manifest says of a layer.
func layerIn(manifest object, i int) object { return manifest["layers"].([]any)[i].(object) }

// evils make a registry's image "it:1" an impossible one, by what is wrong with it.
var evils = map[string]struct {
	do   func(t *testing.T, e *evil, good [][]byte) (manifest string)
	code api.Code
	says string
}{
	"another layer": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) {
			l := layerIn(m, 0)
			e.docs[l["digest"].(string)] = bytes.Repeat([]byte("x"), l["size"].(int))
		}, good...)
	}, api.CodeInvalid, "its content has the digest"},
	"a layer that is shorter": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) { layerIn(m, 0)["size"] = layerIn(m, 0)["size"].(int) + 1 }, good...)
	}, api.CodeUnavailable, "breaks off at byte"},
	"a layer that is longer": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) { layerIn(m, 0)["size"] = layerIn(m, 0)["size"].(int) - 1 }, good...)
	}, api.CodeInvalid, "its content has the digest"},
	"a layer of 2^62 bytes": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) { layerIn(m, 0)["size"] = 1 << 62 }, good...)
	}, api.CodeNoSpace, "it:1"},
	"layers of 2^62 bytes, more than a number holds": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) { layerIn(m, 0)["size"], layerIn(m, 1)["size"] = 1<<62, 1<<62 }, good...)
	}, api.CodeNoSpace, "it:1"},
	"the layers of another config": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(c, _ object) { slices.Reverse(c["rootfs"].(object)["diff_ids"].([]any)) }, good...)
	}, api.CodeInvalid, "the image config says"},
	"fewer layers than its config": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) { m["layers"] = m["layers"].([]any)[:1] }, good...)
	}, api.CodeInvalid, "layers"},
	"10,000 layers": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(c, m object) {
			m["layers"] = slices.Repeat(m["layers"].([]any)[:1], 10_000)
			c["rootfs"].(object)["diff_ids"] = slices.Repeat(c["rootfs"].(object)["diff_ids"].([]any)[:1], 10_000)
		}, good...)
	}, api.CodeInvalid, "layers"},
	"another config": {func(t *testing.T, e *evil, good [][]byte) string {
		m := e.image(t, nil, good...)
		var parsed struct{ Config struct{ Digest string } }
		check(t, json.Unmarshal(e.docs[m], &parsed))
		e.docs[parsed.Config.Digest] = []byte("{}")
		return m
	}, api.CodeInvalid, "has the digest"},
	"indexes within each other": {func(t *testing.T, e *evil, good [][]byte) string {
		at, kind := e.image(t, nil, good...), manifestType
		for range 6 {
			at, kind = e.hasJSON(t, object{"schemaVersion": 2, "mediaType": indexType, "manifests": []any{object{"mediaType": kind, "digest": at, "size": 1}}}), indexType
		}
		return at
	}, api.CodeInvalid, "more than 4 deep"},
	"an index of itself": {func(t *testing.T, e *evil, _ [][]byte) string {
		self := "sha256:" + strings.Repeat("5", 64)
		e.docs[self] = e.docs[e.hasJSON(t, object{"schemaVersion": 2, "mediaType": indexType, "manifests": []any{object{"mediaType": indexType, "digest": self, "size": 1}}})]
		return self
	}, api.CodeInvalid, "has the digest"},
	"a manifest without end": {func(t *testing.T, e *evil, good [][]byte) string {
		m := e.image(t, nil, good...)
		e.instead[m] = func(w http.ResponseWriter, r *http.Request) {
			for text := bytes.Repeat([]byte(" "), 64<<10); r.Context().Err() == nil; {
				if _, err := w.Write(text); err != nil {
					return
				}
			}
		}
		return m
	}, api.CodeInvalid, "more than 4194304 bytes"},
	"a layer that is a file here": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) {
			e.instead[layerIn(m, 1)["digest"].(string)] = http.RedirectHandler("file:///etc/shadow", http.StatusTemporaryRedirect).ServeHTTP
		}, good...)
	}, api.CodePermissionDenied, "file:///etc/shadow, which is not http"},
	"a layer that trickles": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, func(_, m object) {
			e.instead[layerIn(m, 0)["digest"].(string)] = func(w http.ResponseWriter, r *http.Request) {
				for r.Context().Err() == nil {
					fmt.Fprint(w, "x")
					w.(http.Flusher).Flush()
					time.Sleep(5 * time.Millisecond)
				}
			}
		}, good...)
	}, api.CodeUnavailable, "hardly sends"},
	"a layer of 100 MB of zeros": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, nil, good[0], archive(t, fileEntry("zeros", 100<<20)))
	}, api.CodeInvalid, "zeros"},
	"a layer that leads up": {func(t *testing.T, e *evil, good [][]byte) string {
		return e.image(t, nil, good[0], archive(t, tar.Header{Name: "../x"}))
	}, api.CodeInvalid, `entry "../x"`},
}

// TestEvilRegistries pulls from registries that lie. Each pull is refused with the name
// of the image and of what is wrong, nothing is visible of it, and at most whole layers
// that another pull can use are left, until they are pruned.
func TestEvilRegistries(t *testing.T) {
	good := [][]byte{archive(t, fileEntry("a", 10)), archive(t, fileEntry("b", 20))}
	for what, c := range evils {
		t.Run(what, func(t *testing.T) {
			e := newEvil(t)
			m, db, dir := newManager(t)
			m.Registries = &registry.Client{Config: registry.Config{Patience: registry.Patience{Window: 200 * time.Millisecond, Pause: time.Millisecond}}}
			m.Room.Dir = dir
			other := newEvil(t)
			other.docs["1"] = other.docs[other.image(t, nil, archive(t, fileEntry("other", 5)))]
			pull(t, m, other.host+"/other:1")
			before, rows := state(t, dir), leftovers(t, db, dir)

			manifest := c.do(t, e, good)
			e.docs["1"] = e.docs[manifest]
			for _, ref := range []string{e.host + "/it:1", e.host + "/it@" + manifest} {
				if strings.Contains(ref, "@") && strings.Contains(c.says, "it:1") || strings.HasSuffix(ref, ":1") && e.instead[manifest] != nil {
					continue
				}
				_, err := m.Pull(t.Context(), 1000, api.PullImage{Ref: ref}, nil)
				if err == nil || api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), e.host) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v, want %s with %q", ref, err, c.code, c.says)
				}
			}
			if images, err := m.List(t.Context(), 0); err != nil || len(images) != 1 {
				t.Errorf("there are images %+v, %v", images, err)
			}
			prune(t, m)
			if after := state(t, dir); !slices.Equal(after, before) || leftovers(t, db, dir) != rows {
				t.Errorf("it left %q where there was %q", after, before)
			}
		})
	}
}

func pull(t *testing.T, m *image.Manager, ref string) image.Image {
	t.Helper()
	img, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref}, nil)
	check(t, err)
	return img
}

// prune removes what no image needs.
func prune(t *testing.T, m *image.Manager) {
	t.Helper()
	for _, item := range must2(m.Unused(t.Context()))(t) {
		check(t, item.Remove(t.Context()))
	}
}

// TestNobodyWaitsForAnothersRegistry has a user pull, from a registry that never comes
// to an end, an image that somebody else then pulls from another one.
func TestNobodyWaitsForAnothersRegistry(t *testing.T) {
	e, honest := newEvil(t), newEvil(t)
	layer := archive(t, fileEntry("a", 10))
	manifest := e.image(t, nil, layer)
	e.docs["1"], honest.docs["1"] = e.docs[manifest], e.docs[honest.image(t, nil, layer)]
	var parsed struct{ Layers []struct{ Digest string } }
	check(t, json.Unmarshal(e.docs[manifest], &parsed))
	asked := make(chan struct{})
	var first sync.Once
	e.instead[parsed.Layers[0].Digest] = func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		first.Do(func() { close(asked) })
		<-r.Context().Done()
	}
	m, db, dir := newManager(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := m.Pull(ctx, 1000, api.PullImage{Ref: e.host + "/it:1"}, nil)
		ended <- err
	}()
	<-asked
	pull(t, m, honest.host+"/it:1")
	cancel()
	if err := <-ended; err == nil {
		t.Error("an image came from a registry that sends nothing")
	}
	if n := leftovers(t, db, dir); n != 2 {
		t.Errorf("%d rows and directories for one layer", n)
	}
}
