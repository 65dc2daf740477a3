package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/api"
	"banger/internal/image"
)

// exported is the archive that an image becomes.
func exported(t *testing.T, m *image.Manager, name string) []byte {
	t.Helper()
	e, err := m.Export(t.Context(), 0, name)
	check(t, err)
	var b bytes.Buffer
	check(t, e.Write(t.Context(), &b), e.Close())
	return b.Bytes()
}

// TestExport sends images elsewhere and back: the layers have the same digests there,
// and what is exported again is the same, byte for byte.
func TestExport(t *testing.T) {
	img := ociImage(t, archive(t, fileEntry("a", 10)), archive(t, fileEntry("b", 20)), archive(t, fileEntry("a", 10)))
	for kind, data := range map[string][]byte{
		"layout": packedLayout(t, img), "docker": saved(t, img), "a root": archive(t, fileEntry("bin/x", 100)),
		"a root, gzip": packed(t, archive(t, fileEntry("bin/x", 100)), "gzip", "-c"), "a root, xz": packed(t, archive(t, fileEntry("bin/x", 100)), "xz", "-c"),
	} {
		t.Run(kind, func(t *testing.T) {
			m, _, _ := newManager(t)
			first, err := m.Import(t.Context(), 0, "example.org/it:1", bytes.NewReader(data), nil)
			check(t, err)
			out := exported(t, m, "example.org/it:1")
			other, db, dir := newManager(t)
			second, err := other.Import(t.Context(), 0, "example.org/it:1", bytes.NewReader(out), nil)
			check(t, err)
			if second.ID != first.ID || second.Config != first.Config || len(second.Layers) != len(first.Layers) {
				t.Errorf("elsewhere it is %+v, here %+v", second, first)
			}
			for i, l := range second.Layers {
				if l.DiffID != first.Layers[i].DiffID || l.Digest != first.Layers[i].Digest || first.Layers[i].Blob != "" && l.Blob != first.Layers[i].Blob {
					t.Errorf("layer %d is %+v, was %+v", i, l, first.Layers[i])
				}
			}
			if again := exported(t, other, "example.org/it:1"); !bytes.Equal(again, out) {
				t.Error("exported again it is another archive")
			}
			check(t, other.Remove(t.Context(), 0, "example.org/it:1"))
			if n := leftovers(t, db, dir); n != 0 {
				t.Errorf("%d rows and directories are left", n)
			}
		})
	}
}

// TestOthersTakeExports has skopeo and umoci read what is exported, as the archive of a
// layout and as one of docker save.
func TestOthersTakeExports(t *testing.T) {
	folder := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
	twice := archive(t, folder("./"), fileEntry("a", 10))
	layers := [][]byte{twice, archive(t, folder("./"), folder("d/"), fileEntry("d/b", 20), fileEntry(".wh.a", 0)), twice}
	root := archive(t, folder("./"), folder("bin/"), fileEntry("bin/x", 100))
	for kind, data := range map[string][]byte{
		"layers": packedLayout(t, ociImage(t, layers...)), "docker": saved(t, ociImage(t, layers...)), "a root": root,
		"a root, gzip": packed(t, root, "gzip", "-c"), "a root, zstd": packed(t, root, "zstd", "-c"), "a root, xz": packed(t, root, "xz", "-c"),
	} {
		for _, name := range []string{"it", "example.org/team/it:1", "127.0.0.1:5000/it@sha256:" + strings.Repeat("a", 64)} {
			t.Run(kind+" as "+name, func(t *testing.T) {
				m, _, _ := newManager(t)
				img, err := m.Import(t.Context(), 0, name, bytes.NewReader(data), nil)
				check(t, err)
				dir := t.TempDir()
				check(t, os.WriteFile(filepath.Join(dir, "it.tar"), exported(t, m, name), 0o600))
				must(t, dir, "skopeo", "copy", "-q", "docker-archive:it.tar", "dir:docker")
				must(t, dir, "skopeo", "copy", "-q", "oci-archive:it.tar", "oci:layout:it")
				if _, err := os.Stat(filepath.Join(dir, "docker", strings.TrimPrefix(img.ID, "sha256:"))); err != nil {
					t.Errorf("as an archive of docker save it is another image: %v", err)
				}
				must(t, dir, "umoci", "unpack", "--image", "layout:it", "bundle")
				disks, err := m.Disks(t.Context(), img.ID)
				check(t, err)
				differ(t, describe(t, filepath.Join(dir, "bundle", "rootfs")), describe(t, image.Mounted(t, disks...)))
			})
		}
	}
}

// TestExportWhileRemoved removes an image while it is exported.
func TestExportWhileRemoved(t *testing.T) {
	m, _, _ := newManager(t)
	_, err := m.Import(t.Context(), 0, "it", bytes.NewReader(packedLayout(t, ociImage(t, archive(t, fileEntry("a", 10))))), nil)
	check(t, err)
	whole := exported(t, m, "it")
	e, err := m.Export(t.Context(), 0, "it")
	check(t, err, m.Remove(t.Context(), 0, "it"))
	var b bytes.Buffer
	if check(t, e.Write(t.Context(), &b), e.Close()); !bytes.Equal(b.Bytes(), whole) {
		t.Error("it is not whole")
	}
	if _, err := m.Export(t.Context(), 0, "it"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("one that is not there: %v", err)
	}
}

func TestExportEnds(t *testing.T) {
	m, _, _ := newManager(t)
	_, err := m.Import(t.Context(), 1000, "it", bytes.NewReader(archive(t, fileEntry("a", 10))), nil)
	check(t, err)
	if _, err := m.Export(t.Context(), 1001, "it"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("another's image: %v", err)
	}
	e, err := m.Export(t.Context(), 1000, "it")
	check(t, err)
	defer e.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Write(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTag(t *testing.T) {
	m, db, dir := newManager(t)
	a, err := m.Import(t.Context(), 0, "a", bytes.NewReader(archive(t, fileEntry("a", 10))), nil)
	check(t, err)
	_, err = m.Import(t.Context(), 1000, "b", bytes.NewReader(archive(t, fileEntry("b", 10))), nil)
	check(t, err)
	for _, bad := range []string{"", "Upper", "../x", "x@1", "a b"} {
		if _, err := m.Tag(t.Context(), 0, "a", bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("as %q: %v", bad, err)
		}
	}
	if _, err := m.Tag(t.Context(), 1001, "b", "mine"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("another's image: %v", err)
	}
	if _, err := m.Tag(t.Context(), 1000, "none", "mine"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("one that is not there: %v", err)
	}
	// Root's under a name of a user's own, whose image had the name and goes with its layer.
	got, err := m.Tag(t.Context(), 1000, "a", "b")
	if err != nil || got.ID != a.ID || got.Owner != 1000 || got.Name != "b" {
		t.Fatalf("%+v, %v", got, err)
	}
	if n := leftovers(t, db, dir); n != 2 {
		t.Errorf("%d rows and directories for one layer", n)
	}
	if same, err := m.Tag(t.Context(), 1000, "b", "b"); err != nil || same.ID != a.ID {
		t.Errorf("as it is called already: %v", err)
	}
	check(t, m.Remove(t.Context(), 0, "a"))
	if i, err := m.Get(t.Context(), 1000, "b"); err != nil || i.ID != a.ID {
		t.Errorf("when the first name is gone: %v", err)
	}
	check(t, m.Remove(t.Context(), 1000, "b"))
	if n := leftovers(t, db, dir); n != 0 {
		t.Errorf("%d rows and directories are left", n)
	}
}

// TestCommit puts a layer on an image, of several users.
func TestCommit(t *testing.T) {
	m, db, dir := newManager(t)
	base, err := m.Import(t.Context(), 0, "base", bytes.NewReader(packedLayout(t, ociImage(t, archive(t, fileEntry("a", 10), fileEntry("d/b", 5))))), nil)
	check(t, err)
	if ok, err := m.Stackable(t.Context(), base.ID); err != nil || !ok {
		t.Fatalf("stackable: %v, %v", ok, err)
	}
	above := archive(t, fileEntry("d/.wh.b", 0), fileEntry("c", 7))
	got, err := m.Commit(t.Context(), 1000, "made", base.ID, false, bytes.NewReader(above), func(api.Progress) {})
	check(t, err)
	if len(got.Layers) != 2 || got.Layers[0].Digest != base.Layers[0].Digest || got.Owner != 1000 || !slices.Equal(got.Run().Env, base.Run().Env) {
		t.Errorf("got %+v", got)
	}
	var config v1.ConfigFile
	check(t, json.Unmarshal([]byte(got.Config), &config))
	if len(config.RootFS.DiffIDs) != 2 || config.RootFS.DiffIDs[1].String() != got.Layers[1].DiffID || config.Architecture != "amd64" {
		t.Errorf("its config: %s", got.Config)
	}
	history := got.History()
	if last := history[len(history)-1]; last.CreatedBy != "banger vm promote" || last.Layer != got.Layers[1].Digest || last.Created == nil {
		t.Errorf("its history: %+v", history)
	}
	whole, err := m.Commit(t.Context(), 0, "whole", base.ID, true, bytes.NewReader(archive(t, fileEntry("all", 7))), func(api.Progress) {})
	check(t, err)
	if len(whole.Layers) != 1 || !slices.Equal(whole.Run().Env, base.Run().Env) || len(whole.History()) != 1 {
		t.Errorf("whole: %+v", whole)
	}
	before := leftovers(t, db, dir)
	for name, bad := range map[string]io.Reader{
		"broken":  io.MultiReader(bytes.NewReader(above[:600]), iotest.ErrReader(api.Errorf(api.CodeGuest, "the guest is gone"))),
		"garbage": strings.NewReader(strings.Repeat("garbage", 1000)),
		"hostile": bytes.NewReader(archive(t, tar.Header{Name: "../x"})),
	} {
		if _, err := m.Commit(t.Context(), 0, "bad", base.ID, false, bad, func(api.Progress) {}); err == nil || api.CodeOf(err) == api.CodeInternal || !strings.Contains(err.Error(), `"bad"`) {
			t.Errorf("%s: %v", name, err)
		}
		if n := leftovers(t, db, dir); n != before {
			t.Errorf("%s: %d rows and directories, %d before", name, n, before)
		}
	}
	if _, err := m.Commit(t.Context(), 1000, "made", base.ID, false, bytes.NewReader(above), func(api.Progress) {}); api.CodeOf(err) != api.CodeAlreadyExists {
		t.Errorf("a name that is taken: %v", err)
	}
}

func TestHistory(t *testing.T) {
	m, _, _ := newManager(t)
	config := []byte(`{"os":"linux","history":[{"created":"2024-01-02T03:04:05Z","created_by":"ADD root"},{"created_by":"ENV A=b","empty_layer":true,"comment":"buildkit"},{"created":"0001-01-01T00:00:00Z","created_by":"RUN x"}],"rootfs":{"type":"layers","diff_ids":["` +
		digestOf(archive(t, fileEntry("a", 10))) + `","` + digestOf(archive(t, fileEntry("b", 10))) + `"]}}`)
	blob := func(data []byte) image.Blob {
		return image.Blob{Size: -1, Open: func(_ context.Context, from int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[from:])), nil
		}}
	}
	img, err := m.Add(t.Context(), 0, "it", false, image.Artifact{Config: config, Layers: []image.Blob{blob(archive(t, fileEntry("a", 10))), blob(archive(t, fileEntry("b", 10)))}}, nil)
	check(t, err)
	got := img.History()
	if len(got) != 3 || got[0].Layer != img.Layers[0].Digest || got[0].Created.Year() != 2024 || got[1].Layer != "" || got[1].Comment != "buildkit" ||
		got[2].Layer != img.Layers[1].Digest || got[2].Created != nil || got[2].Size == 0 {
		t.Errorf("got %+v", got)
	}
	plain, err := m.Import(t.Context(), 0, "plain", bytes.NewReader(archive(t, fileEntry("a", 10))), nil)
	check(t, err)
	if got := plain.History(); len(got) != 1 || got[0].Layer != plain.Layers[0].Digest {
		t.Errorf("of an archive: %+v", got)
	}
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
