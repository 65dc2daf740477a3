package image_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"banger/internal/image"
	"banger/internal/store"
)

// lose loses the database of an installation, and has a new one know what directories do.
func lose(t *testing.T, db *store.DB, dir string) (*image.Manager, *store.DB) {
	t.Helper()
	check(t, db.Close())
	files, err := filepath.Glob(filepath.Join(dir, "banger.db*"))
	check(t, err)
	for _, f := range files {
		check(t, os.Remove(f))
	}
	m, db := manage(t, dir)
	for range 2 { // the second finds nothing to do
		check(t, m.Adopt(t.Context(), slog.New(slog.DiscardHandler)))
	}
	return m, db
}

// TestAdopt loses the database. Images that are whole are what they were, also deep
// ones, whose upper layers are one disk; what belongs to no whole image is set aside.
func TestAdopt(t *testing.T) {
	var layers [][]byte
	for i := range 12 {
		layers = append(layers, archive(t, fileEntry(fmt.Sprint("f", i), 5), fileEntry(fmt.Sprintf(".wh.f%d", i-2), 0)))
	}
	damage := map[string]struct {
		do    func(t *testing.T, m *image.Manager, dir string, all map[string]image.Image)
		lost  []string // images
		aside int      // directories
	}{
		"nothing": {},
		"the disk of a deep image's upper layers": {
			do: func(t *testing.T, m *image.Manager, dir string, all map[string]image.Image) {
				check(t, os.RemoveAll(filepath.Join(dir, all["deep"].Tail.Dir)))
			}, lost: []string{"deep"}, aside: 4, // the layers that no other image has
		},
		"the second copy of a layer that two have": {
			do: func(t *testing.T, m *image.Manager, dir string, all map[string]image.Image) {
				check(t, os.WriteFile(filepath.Join(dir, all["deep"].Layers[2].Dir, "layer.json"), []byte("{"), 0o600))
			}, lost: []string{"deep", "shallow"}, aside: 13, // their layers, and the disk of several
		},
		"the archive and the disk of a layer": {
			do: func(t *testing.T, m *image.Manager, dir string, all map[string]image.Image) {
				files, err := filepath.Glob(filepath.Join(dir, all["plain"].Layers[0].Dir, "*"))
				check(t, err)
				for _, f := range files {
					if filepath.Base(f) != "layer.json" {
						check(t, os.Remove(f))
					}
				}
			}, lost: []string{"plain"}, aside: 1,
		},
		"a directory that is none of a layer": {
			do: func(t *testing.T, m *image.Manager, dir string, all map[string]image.Image) {
				check(t, os.Mkdir(filepath.Join(dir, "layers", "0123456789abcdef"), 0o700))
			}, aside: 1,
		},
	}
	for name, d := range damage {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m, db := manage(t, dir)
			for name, data := range map[string][]byte{
				"deep": saved(t, ociImage(t, layers...)), "shallow": saved(t, ociImage(t, layers[:8]...)), "plain": archive(t, fileEntry("f", 7)),
			} {
				_, err := m.Import(t.Context(), 7, name, bytes.NewReader(data), nil)
				check(t, err)
			}
			before, disks := looked(t, m)
			if d.do != nil {
				d.do(t, m, dir, before)
			}
			m, db = lose(t, db, dir)
			for _, name := range d.lost {
				delete(before, name)
				delete(disks, name)
			}
			after, disksAfter := looked(t, m)
			if !reflect.DeepEqual(before, after) {
				t.Errorf("images %+v\nwere    %+v", after, before)
			}
			if !maps.Equal(disks, disksAfter) {
				t.Errorf("disks %q\nwere  %q", disksAfter, disks)
			}
			aside, err := filepath.Glob(filepath.Join(dir, "lost-*", "layers", "*"))
			check(t, err)
			if len(aside) != d.aside {
				t.Errorf("%d directories are set aside, want %d", len(aside), d.aside)
			}
			known, err := db.Layers(t.Context())
			check(t, err)
			if n := leftovers(t, db, dir); n != 2*len(known) {
				t.Errorf("%d rows and directories of %d layers", n, len(known))
			}
			for name := range after {
				check(t, m.Remove(t.Context(), 7, name))
			}
			if n := leftovers(t, db, dir); n != 0 {
				t.Errorf("%d rows and directories are left of nothing", n)
			}
		})
	}
}

// looked returns all images by name, and the disks that VMs of them have.
func looked(t *testing.T, m *image.Manager) (images map[string]image.Image, disks map[string]string) {
	t.Helper()
	images, disks = map[string]image.Image{}, map[string]string{}
	all, err := m.List(t.Context(), 7)
	check(t, err)
	for _, i := range all {
		i.Created = i.Created.UTC().Round(0)
		images[i.Name] = i
		paths, err := m.Disks(t.Context(), i.ID)
		check(t, err)
		if slices.ContainsFunc(paths, func(p string) bool { _, err := os.Stat(p); return err != nil }) {
			t.Errorf("of the disks of %s some are missing: %q", i.Name, paths)
		}
		disks[i.Name] = strings.Join(paths, "\n")
	}
	return images, disks
}
