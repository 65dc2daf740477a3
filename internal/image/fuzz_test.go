package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"banger/api"
	"banger/internal/intake"
)

// FuzzFilter puts anything through the filter, and what that lets pass into a file
// system: the writer must have nothing left to refuse.
func FuzzFilter(f *testing.F) {
	for _, h := range [][]tar.Header{
		{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/f", Size: 5, Mode: 0o4755}, {Name: "l", Typeflag: tar.TypeLink, Linkname: "d/f"}},
		{{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "a/b"}, {Name: "a/b/c", Size: 1}, {Name: "s/x"}},
		{{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "v"}, ModTime: time.Unix(1, 5)}, {Name: "n", Typeflag: tar.TypeChar, Devminor: 3}},
	} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, h := range h {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(out.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const maxSize, maxEntries = 1 << 20, 100
		raw := &meter{r: bytes.NewReader(data)}
		fi := newFilter(&source{raw: raw, r: raw, format: intake.Plain, sum: sha256.New(), left: 2 << 20}, maxSize, maxEntries, func(int64) {})
		var passed bytes.Buffer
		err := fi.run(&passed)
		if err != nil && api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("got %v", err)
		}
		if err == nil {
			out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if err := tar2ext4.ConvertTarToExt4(&passed, &sparseWriter{f: out}, tar2ext4.MaximumDiskSize(64<<20)); err != nil {
				t.Errorf("the writer had to refuse it: %v", err)
			}
		}
		if err == nil && fi.size > maxSize {
			t.Errorf("%d bytes of content went through", fi.size)
		}
		if nodes := count(fi.tree.root); nodes > maxEntries+3 {
			t.Errorf("%d inodes of %d entries", nodes, maxEntries)
		}
	})
}

func count(n *node) int {
	sum := 1
	for _, child := range n.children {
		sum += count(child)
	}
	return sum
}
