package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/hosttest"
)

// imageRounds is how often each side runs where it takes seconds.
const imageRounds = 5

// debianTar is the archive of the fixture's image, plain, in a file.
func debianTar(b *testing.B, h *hosttest.Host) string {
	b.Helper()
	kept, err := filepath.Glob(filepath.Join(h.Paths.State, "layers", "*", "archive"))
	if err != nil || len(kept) != 1 {
		b.Fatalf("archives of the fixture: %q, %v", kept, err)
	}
	file := filepath.Join(b.TempDir(), "debian.tar")
	timed(b, exec.Command("zstd", "-dqf", kept[0], "-o", file))
	return file
}

// filesTar is an archive of files of a hundred kilobytes, which compress to about a half.
func filesTar(name string, size int) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	random := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", name))))
	content := make([]byte, 100_000)
	for i := 0; i*len(content) < size; i++ {
		_, _ = random.Read(content[:len(content)/2])
		_ = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("opt/%s/%d", name, i), Mode: 0o644, Size: int64(len(content)), Format: tar.FormatPAX})
		_, _ = w.Write(content)
	}
	_ = w.Close()
	return out.Bytes()
}

// layer makes a layer of an archive, compressed once.
func layer(b *testing.B, data []byte) v1.Layer {
	b.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func imageOf(b *testing.B, layers ...v1.Layer) v1.Image {
	b.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	if err == nil {
		img, err = mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	}
	if err != nil {
		b.Fatal(err)
	}
	return img
}

// BenchmarkImport compares the import of an archive of Debian with tar, which unpacks
// it to the same disk, until it is there.
func BenchmarkImport(b *testing.B) {
	h := hosttest.NewSeeded(b)
	file := debianTar(b, h)
	h.Must(b, "image", "rm", "debian")
	dir := filepath.Join(h.Paths.State, "unpacked")
	compare(b, "import", imageRounds, 1,
		func() time.Duration {
			defer h.Must(b, "image", "rm", "bench")
			return timed(b, h.Command(b.Context(), "image", "import", "bench", file))
		},
		func() time.Duration {
			defer os.RemoveAll(dir)
			return timed(b, exec.Command("sh", "-c", `mkdir "$1" && tar -xpf "$0" -C "$1" && sync -f "$1"`, file, dir))
		})
}

// BenchmarkPull compares the pull of an image of five layers, 300 MB, with skopeo and
// umoci, and that of an image that shares four of them with that of its own layer alone.
func BenchmarkPull(b *testing.B) {
	h := hosttest.NewSeeded(b)
	debian, err := os.ReadFile(debianTar(b, h))
	if err != nil {
		b.Fatal(err)
	}
	h.Must(b, "image", "rm", "debian")
	r := hosttest.NewRegistry(b)
	layers := []v1.Layer{layer(b, debian)}
	for i := range 4 {
		layers = append(layers, layer(b, filesTar(fmt.Sprint("layer", i), 25_000_000)))
	}
	five, _ := r.Push(b, "five:1", imageOf(b, layers...))
	own := layer(b, filesTar("own", 25_000_000))
	second, _ := r.Push(b, "second:1", imageOf(b, append(layers[:4:4], own)...))
	alone, _ := r.Push(b, "alone:1", imageOf(b, own))
	debian, layers = nil, nil

	pull := func(ref string) func() time.Duration {
		return func() time.Duration {
			defer h.Must(b, "image", "rm", ref)
			return timed(b, h.Command(b.Context(), "image", "pull", "--quiet", ref))
		}
	}
	dir := filepath.Join(h.Paths.State, "unpacked")
	compare(b, "pull", imageRounds, 0.6, pull(five), func() time.Duration {
		defer os.RemoveAll(dir)
		return timed(b, exec.CommandContext(context.Background(), "sh", "-c",
			`mkdir "$1" && skopeo copy -q --src-tls-verify=false "docker://$0" "oci:$1/oci:it" && umoci unpack --image "$1/oci:it" "$1/bundle" && sync -f "$1"`, five, dir))
	})
	h.Must(b, "image", "pull", "--quiet", five)
	compare(b, "pull-shared", 4*rounds+1, 1.1, pull(second), pull(alone)) // a quarter of a second each
}

// BenchmarkLayers compares the start of a VM whose image has eight layers with that of
// one whose image has the first of them only.
func BenchmarkLayers(b *testing.B) {
	h := hosttest.NewSeeded(b)
	debian, err := os.ReadFile(debianTar(b, h))
	if err != nil {
		b.Fatal(err)
	}
	layers := []v1.Layer{layer(b, debian)}
	for i := range 7 {
		layers = append(layers, layer(b, filesTar(fmt.Sprint("layer", i), 1_000_000)))
	}
	r := hosttest.NewRegistry(b)
	eight, _ := r.Push(b, "eight:1", imageOf(b, layers...))
	debian, layers = nil, nil
	h.Must(b, "image", "pull", "--quiet", eight)
	run := func(image string) func() time.Duration {
		return func() time.Duration {
			return timed(b, h.Command(b.Context(), "vm", "run", "--rm", "--image", image, "--", "true"))
		}
	}
	compare(b, "layers", rounds, 1.1, run(eight), run("debian"))
}
