package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"banger/api"
	"banger/internal/image"
)

// small is a manager of images on a disk of so many MiB.
func small(t *testing.T, size int) (m *image.Manager, left func() int) {
	t.Helper()
	m, db, dir := newManager(t)
	layers := filepath.Join(dir, "layers")
	check(t, os.MkdirAll(layers, 0o711))
	must(t, "", "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", size), "tmpfs", layers)
	t.Cleanup(func() { must(t, "", "umount", layers) })
	m.MaxSize, m.Room.Dir = 20<<30, layers
	return m, func() int { return leftovers(t, db, dir) }
}

// bomb is an archive of one file of so many bytes that are all the same, which takes
// next to nothing itself.
func bomb(t *testing.T, size int64, b byte) []byte {
	t.Helper()
	return squeezed(t, func(w io.Writer) { repeated(t, w, size, b) })
}

func repeated(t *testing.T, w io.Writer, size int64, b byte) {
	t.Helper()
	out := tar.NewWriter(w)
	check(t, out.WriteHeader(&tar.Header{Name: "bomb", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}))
	block := bytes.Repeat([]byte{b}, 1<<20)
	for range size / int64(len(block)) {
		_, err := out.Write(block)
		check(t, err)
	}
	check(t, out.Close())
}

func squeezed(t *testing.T, write func(io.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	check(t, err)
	write(z)
	check(t, z.Close())
	return b.Bytes()
}

// savedBomb is what docker save makes of an image with such a layer, compressed.
func savedBomb(t *testing.T, size int64, b byte) []byte {
	t.Helper()
	layer := filepath.Join(t.TempDir(), "layer.tar")
	file, err := os.Create(layer)
	check(t, err)
	sum := &digester{}
	repeated(t, io.MultiWriter(file, sum), size, b)
	length, err := file.Seek(0, io.SeekEnd)
	check(t, err)
	config := fmt.Appendf(nil, `{"os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, sum)
	return squeezed(t, func(w io.Writer) {
		out := tar.NewWriter(w)
		for _, f := range []struct {
			name string
			data []byte
		}{{"manifest.json", []byte(`[{"Config":"config.json","Layers":["layer.tar"]}]`)}, {"config.json", config}} {
			check(t, out.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Size: int64(len(f.data))}))
			_, err := out.Write(f.data)
			check(t, err)
		}
		check(t, out.WriteHeader(&tar.Header{Name: "layer.tar", Typeflag: tar.TypeReg, Size: length}))
		_, err := io.Copy(out, io.NewSectionReader(file, 0, length))
		check(t, err, out.Close(), file.Close())
	})
}

// TestZerosTakeNoRoom imports files of zeros that are larger than the disk on which
// their images are to be, which so has what they are and not what they seem.
func TestZerosTakeNoRoom(t *testing.T) {
	const size = 512 << 20
	for kind, archive := range map[string]func() []byte{
		"10 GB in 3 kB": func() []byte {
			return paxSparse(t, map[string]string{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bomb", "GNU.sparse.realsize": fmt.Sprint(10 << 30)})
		},
		"a root":   func() []byte { return bomb(t, size, 0) },
		"an image": func() []byte { return savedBomb(t, size, 0) },
	} {
		t.Run(kind, func(t *testing.T) {
			data := archive()
			m, left := small(t, 32)
			img, err := m.Import(t.Context(), 0, "zeros", bytes.NewReader(data), nil)
			check(t, err)
			disks, err := m.Disks(t.Context(), img.ID)
			check(t, err)
			info, err := os.Stat(filepath.Join(image.Mounted(t, disks...), "bomb"))
			check(t, err)
			if want := int64(size); info.Size() != want && info.Size() != 10<<30 {
				t.Errorf("it has %d bytes", info.Size())
			}
			t.Logf("%d bytes of archive", len(data))
			check(t, m.Remove(t.Context(), 0, "zeros"))
			if n := left(); n != 0 {
				t.Errorf("%d rows and directories are left", n)
			}
		})
	}
}

// TestBombsAreRefused has files in such archives that do take room.
func TestBombsAreRefused(t *testing.T) {
	for kind, data := range map[string][]byte{"a root": bomb(t, 128<<20, 'x'), "an image": savedBomb(t, 128<<20, 'x')} {
		m, left := small(t, 64)
		if _, err := m.Import(t.Context(), 0, "bomb", bytes.NewReader(data), nil); api.CodeOf(err) != api.CodeNoSpace || !strings.Contains(err.Error(), "available") {
			t.Errorf("%s of %d bytes: %v", kind, len(data), err)
		}
		if n := left(); n != 0 {
			t.Errorf("%s: %d rows and directories are left", kind, n)
		}
	}
}

// digester is the digest of what is written to it.
type digester struct{ sum hash.Hash }

func (d *digester) Write(p []byte) (int, error) {
	if d.sum == nil {
		d.sum = sha256.New()
	}
	return d.sum.Write(p)
}

func (d *digester) String() string { return fmt.Sprintf("sha256:%x", d.sum.Sum(nil)) }
