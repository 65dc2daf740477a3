package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"banger/api"
	"banger/internal/image"
	"banger/internal/resource"
	"banger/internal/store"
)

func newManager(t *testing.T) (m *image.Manager, db *store.DB, dir string) {
	t.Helper()
	dir = t.TempDir()
	m, db = manage(t, dir)
	return m, db, dir
}

// manage opens the installation in a state directory.
func manage(t *testing.T, dir string) (*image.Manager, *store.DB) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(dir, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	dirs := resource.NewDir("dir", dir, false, "layers")
	ledger := resource.New(db, "boot", slog.New(slog.DiscardHandler), dirs)
	return image.New(image.Config{Ledger: ledger, Dirs: dirs, Store: db, MaxSize: 1 << 20, MaxEntries: 100}), db
}

// archive is a tar archive of entries; a regular file's content is its size in
// zeros.
func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func leftovers(t *testing.T, db *store.DB, dir string) int {
	t.Helper()
	refs, err := db.Resources(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(filepath.Join(dir, "layers"))
	return len(refs) + len(entries)
}

func TestImportOnceKeepsOneLayer(t *testing.T) {
	m, db, dir := newManager(t)
	plain := archive(t, tar.Header{Name: "bin/", Typeflag: tar.TypeDir}, tar.Header{Name: "bin/true", Size: 100})
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(plain)
	z.Close()
	first, err := m.Import(t.Context(), 0, "one", bytes.NewReader(plain), func(api.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.Import(t.Context(), 1000, "two", &zipped, func(api.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if first.ID != second.ID || leftovers(t, db, dir) != 2 {
		t.Errorf("the same archive made %v and %v", first, second)
	}
	if _, err := m.Get(t.Context(), 1001, "two"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("a stranger sees a user's image: %v", err)
	}
	if _, err := m.Get(t.Context(), 1001, "one"); err != nil {
		t.Errorf("a user does not see root's image: %v", err)
	}
	if err := m.Remove(t.Context(), 0, "one"); err != nil {
		t.Fatal(err)
	}
	if disks, err := m.Disks(t.Context(), second.ID); err != nil || len(disks) != 1 {
		t.Errorf("the layer is gone with the first of its images: %v, %v", disks, err)
	}
	if err := m.Remove(t.Context(), 1000, "two"); err != nil || leftovers(t, db, dir) != 0 {
		t.Errorf("after both removals: %v, %d left", err, leftovers(t, db, dir))
	}
}
