package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/api"
	"banger/internal/image"
)

// ociImage is an image of gzipped layers.
func ociImage(t *testing.T, layers ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}, Config: v1.Config{Env: []string{"A=b"}}})
	check(t, err)
	for _, l := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil })
		check(t, err)
		img, err = mutate.AppendLayers(img, layer)
		check(t, err)
	}
	return img
}

// saved is what docker save of its time makes.
func saved(t *testing.T, images ...v1.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	refs := map[name.Reference]v1.Image{}
	for i, img := range images {
		ref, err := name.ParseReference(fmt.Sprintf("example.org/img:%d", i))
		check(t, err)
		refs[ref] = img
	}
	check(t, tarball.MultiRefWrite(refs, &b))
	return b.Bytes()
}

// packedLayout is the archive of an OCI Image Layout, as docker save makes it now.
func packedLayout(t *testing.T, images ...v1.Image) []byte {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	check(t, err)
	for _, img := range images {
		check(t, p.AppendImage(img))
	}
	return tarOf(t, dir)
}

func tarOf(t *testing.T, dir string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.tar")
	must(t, dir, "tar", "-cf", file, ".")
	data, err := os.ReadFile(file)
	check(t, err)
	return data
}

func fileEntry(n string, size int64) tar.Header { return tar.Header{Name: n, Size: size} }

func TestImportOfPackedImages(t *testing.T) {
	base, middle := archive(t, fileEntry("a", 10), fileEntry("d/b", 10)), archive(t, fileEntry("d/.wh.b", 0), fileEntry("d/c", 5))
	img := ociImage(t, base, middle)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(packedLayout(t, img))
	z.Close()
	for kind, data := range map[string][]byte{"docker": saved(t, img), "layout": packedLayout(t, img), "layout, gzip": zipped.Bytes()} {
		t.Run(kind, func(t *testing.T) {
			m, db, dir := newManager(t)
			got, err := m.Import(t.Context(), 0, "it", bytes.NewReader(data), nil)
			check(t, err)
			config, err := img.ConfigName()
			check(t, err)
			if got.ID != config.String() || len(got.Layers) != 2 || !strings.Contains(got.Config, "A=b") {
				t.Errorf("got %+v, want the image %s", got, config)
			}
			if disks, err := m.Disks(t.Context(), got.ID); err != nil || len(disks) != 2 {
				t.Errorf("disks: %q, %v", disks, err)
			}
			if n := leftovers(t, db, dir); n != 4 {
				t.Errorf("%d rows and directories for two layers", n)
			}
			check(t, m.Remove(t.Context(), 0, "it"))
			if n := leftovers(t, db, dir); n != 0 {
				t.Errorf("%d rows and directories are left", n)
			}
		})
	}
}

// TestLayersAreShared has images of the same first layers, at the same time.
func TestLayersAreShared(t *testing.T) {
	m, db, dir := newManager(t)
	base := archive(t, fileEntry("a", 1000))
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			img := ociImage(t, base, archive(t, fileEntry("shared", 10)), archive(t, fileEntry(fmt.Sprint("own", i%3), 10)))
			_, err := m.Import(t.Context(), 0, fmt.Sprint("it", i), bytes.NewReader(saved(t, img)), nil)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := leftovers(t, db, dir); n != 2*(2+3) {
		t.Errorf("%d rows and directories, want those of 5 layers", n)
	}
	for i := range 6 {
		check(t, m.Remove(t.Context(), 0, fmt.Sprint("it", i)))
	}
	if n := leftovers(t, db, dir); n != 0 {
		t.Errorf("%d rows and directories are left", n)
	}
}

// TestDeepImages have no more than eight disks, of which they share the first seven
// with images of which these are all.
func TestDeepImages(t *testing.T) {
	m, _, _ := newManager(t)
	var layers [][]byte
	for i := range 12 {
		layers = append(layers, archive(t, fileEntry(fmt.Sprint("f", i), 5), fileEntry(fmt.Sprintf(".wh.f%d", i-2), 0)))
	}
	deep, err := m.Import(t.Context(), 0, "deep", bytes.NewReader(saved(t, ociImage(t, layers...))), nil)
	check(t, err)
	shallow, err := m.Import(t.Context(), 0, "shallow", bytes.NewReader(saved(t, ociImage(t, layers[:8]...))), nil)
	check(t, err)
	first, err := m.Disks(t.Context(), deep.ID)
	check(t, err)
	second, err := m.Disks(t.Context(), shallow.ID)
	check(t, err)
	if len(first) != 8 || len(second) != 8 || strings.Join(first[:7], ":") != strings.Join(second[:7], ":") || first[7] == second[7] {
		t.Errorf("disks\n%q\n%q", first, second)
	}
	for _, disk := range append(first, second...) {
		if _, err := os.Stat(disk); err != nil {
			t.Error(err)
		}
	}
}

// TestOthersLayersAreNotOnesOwn names a layer that only another user has.
func TestOthersLayersAreNotOnesOwn(t *testing.T) {
	m, db, dir := newManager(t)
	secret := archive(t, fileEntry("secret", 1000))
	_, err := m.Import(t.Context(), 1000, "private", bytes.NewReader(saved(t, ociImage(t, secret))), nil)
	check(t, err)
	img := ociImage(t, secret)
	config, err := img.RawConfigFile()
	check(t, err)
	for guess, says := range map[string]string{string(archive(t, fileEntry("guess", 1))): "digest", "\x1f\x8bguess": "damaged", string(half(packed(t, noise(t), "gzip"))): "truncated"} {
		art := image.Artifact{Config: config, Layers: []image.Blob{{Size: -1, Open: func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(guess)), nil
		}}}}
		if _, err := m.Add(t.Context(), 1001, "stolen", false, art, nil); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), says) {
			t.Errorf("a layer of somebody else: %v", err)
		}
	}
	if n := leftovers(t, db, dir); n != 2 {
		t.Errorf("%d rows and directories, want those of the other's layer", n)
	}
	if _, err := m.Import(t.Context(), 1001, "honest", bytes.NewReader(saved(t, img)), nil); err != nil {
		t.Errorf("a layer that one has as well: %v", err)
	}
}

// TestPackedImagesRefused imports archives of images that are wrong, each of which is
// refused by name and leaves nothing.
func TestPackedImagesRefused(t *testing.T) {
	good := ociImage(t, archive(t, fileEntry("a", 10)))
	files := func(edit func(dir string)) []byte {
		dir := t.TempDir()
		p, err := layout.Write(dir, empty.Index)
		check(t, err, p.AppendImage(good))
		edit(dir)
		return tarOf(t, dir)
	}
	manifest, err := good.Manifest()
	check(t, err)
	at := func(h v1.Hash) string { return filepath.Join("blobs", h.Algorithm, h.Hex) }
	index := func(dir string, edit func(*v1.IndexManifest)) {
		data, err := os.ReadFile(filepath.Join(dir, "index.json"))
		check(t, err)
		var i v1.IndexManifest
		check(t, json.Unmarshal(data, &i))
		edit(&i)
		data, err = json.Marshal(i)
		check(t, err, os.WriteFile(filepath.Join(dir, "index.json"), data, 0o600))
	}
	liar, err := mutate.ConfigFile(good, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}}})
	check(t, err)
	windows, err := mutate.ConfigFile(good, &v1.ConfigFile{OS: "windows", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{manifest.Config.Digest}}})
	check(t, err)
	notTar, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("hello"), types.OCIUncompressedLayer))
	check(t, err)
	for what, c := range map[string]struct {
		data []byte
		says string
	}{
		"two images":     {packedLayout(t, good, ociImage(t, archive(t, fileEntry("b", 1)))), "2 images"},
		"two saved":      {saved(t, good, ociImage(t, archive(t, fileEntry("b", 1)))), "2 images"},
		"no images":      {packedLayout(t), "no image"},
		"layer missing":  {files(func(d string) { check(t, os.Remove(filepath.Join(d, at(manifest.Layers[0].Digest)))) }), "lacks"},
		"config missing": {files(func(d string) { check(t, os.Remove(filepath.Join(d, at(manifest.Config.Digest)))) }), "lacks"},
		"layer changed":  {files(func(d string) { spoil(t, filepath.Join(d, at(manifest.Layers[0].Digest))) }), "sha256:"},
		"config changed": {files(func(d string) { spoil(t, filepath.Join(d, at(manifest.Config.Digest))) }), "digest"},
		"wrong diff id":  {packedLayout(t, liar), "digest"},
		"another system": {packedLayout(t, windows), "windows"},
		"not an archive": {packedLayout(t, notTar), "not a tar archive"},
		"another platform": {files(func(d string) {
			index(d, func(i *v1.IndexManifest) { i.Manifests[0].Platform = &v1.Platform{OS: "linux", Architecture: "s390x"} })
		}), "linux/amd64"},
		"an index loop":     {files(func(d string) { loop(t, d, index) }), "indexes"},
		"garbage for index": {files(func(d string) { check(t, os.WriteFile(filepath.Join(d, "index.json"), []byte("{"), 0o600)) }), "index"},
		"truncated":         {packedLayout(t, good)[:3000], "truncated"},
		"a hostile layer":   {packedLayout(t, ociImage(t, archive(t, fileEntry("../x", 1)))), `".."`},
		"below a whiteout":  {packedLayout(t, ociImage(t, archive(t, fileEntry(".wh.d/x", 1)))), "whiteout"},
		"a nameless mark":   {packedLayout(t, ociImage(t, archive(t, fileEntry("d/.wh.", 1)))), "whiteout"},
		"a mark of ..":      {packedLayout(t, ociImage(t, archive(t, fileEntry("d/.wh...", 1)))), "whiteout"},
	} {
		t.Run(what, func(t *testing.T) {
			m, db, dir := newManager(t)
			_, err := m.Import(t.Context(), 0, "bad", bytes.NewReader(c.data), nil)
			if err == nil || !strings.Contains(err.Error(), c.says) || api.CodeOf(err) != api.CodeInvalid && api.CodeOf(err) != api.CodeUnsupported || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want something of %q", err, c.says)
			}
			if n := leftovers(t, db, dir); n != 0 {
				t.Errorf("%d rows and directories are left", n)
			}
			if layers, err := db.Layers(t.Context()); err != nil || len(layers) != 0 {
				t.Errorf("layers left: %v, %v", layers, err)
			}
		})
	}
}

func spoil(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	check(t, err)
	data[len(data)/2] ^= 1
	check(t, os.Chmod(file, 0o600), os.WriteFile(file, data, 0o600))
}

// loop has an index lead to a deep chain of indexes: one cannot name itself by digest.
func loop(t *testing.T, dir string, index func(string, func(*v1.IndexManifest))) {
	t.Helper()
	index(dir, func(i *v1.IndexManifest) {
		for range 10 {
			data, err := json.Marshal(i)
			check(t, err)
			h, size, err := v1.SHA256(bytes.NewReader(data))
			check(t, err, os.WriteFile(filepath.Join(dir, "blobs", "sha256", h.Hex), data, 0o600))
			i.Manifests = []v1.Descriptor{{MediaType: types.OCIImageIndex, Digest: h, Size: size}}
		}
	})
}
