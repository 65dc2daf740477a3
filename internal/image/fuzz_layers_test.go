package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"banger/api"
)

// FuzzLayer puts anything on a layer: what the filter lets pass is a file system, in
// which nothing is hidden that is not there.
func FuzzLayer(f *testing.F) {
	for _, c := range whiteouts {
		if len(c.layers) > 1 {
			f.Add(archiveOf(c.layers[1]))
		}
	}
	low := archiveOf([]string{"d d,700", "f d/a=1", "h d/b -> d/a", "f a=22", "s l -> d", "s up -> ../..", "f d/e/f/g=3"})
	opened := func(int) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(low)), nil }
	first := testFilter(low)
	first.newLayer(0, nil, opened, nil)
	if err := first.run(io.Discard); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		skip := map[int64]bool{}
		for range 20 {
			fi := testFilter(data)
			fi.maxSize, fi.maxEntries, fi.src.left = 1<<20, 100, 2<<20
			fi.newLayer(1, first.tree.root, opened, skip)
			var passed bytes.Buffer
			err := fi.run(&passed)
			if errors.Is(err, errAgain) {
				continue
			}
			if err != nil {
				if api.CodeOf(err) != api.CodeInvalid {
					t.Errorf("got %v", err)
				}
				return
			}
			out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if err := tar2ext4.ConvertTarToExt4(&passed, &sparseWriter{f: out}, tar2ext4.MaximumDiskSize(64<<20)); err != nil {
				t.Errorf("the writer had to refuse it: %v", err)
			}
			marksHide(t, "", fi.tree.root, first.tree.root)
			return
		}
	})
}

// marksHide looks for marks that would show.
func marksHide(t *testing.T, name string, n, below *node) {
	t.Helper()
	if n.whiteout && below == nil || n.opaque && !below.isDir() {
		t.Errorf("the mark at %q hides nothing", name)
	}
	if n.opaque {
		below = nil
	}
	for base, child := range n.children {
		marksHide(t, name+"/"+base, child, below.child(base))
	}
}

func archiveOf(entries []string) []byte { return layerArchive(fatal{}, entries...) }

// fatal is a testing.TB where there is none yet.
type fatal struct{ testing.TB }

func (fatal) Helper()                   {}
func (fatal) Fatal(args ...any)         { panic(fmt.Sprint(args...)) }
func (fatal) Fatalf(s string, a ...any) { panic(fmt.Sprintf(s, a...)) }

// FuzzMerge has layers of files, directories and marks, and compares what they look
// like from above with what one gets who applies them one by one, as the OCI Image
// Layer Filesystem Changeset says it.
func FuzzMerge(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x10\x11\xff\x20\x31\xff\x12\x02"))
	f.Add([]byte("\x05\x15\x25\xff\x22\x32\xff\x07\x17\x33"))
	f.Fuzz(func(t *testing.T, program []byte) {
		layers := decoded(program)
		want := map[string]string{}
		var below *node
		var trees []*node
		for i, entries := range layers {
			possible := apply(want, i, entries)
			var archives [][]byte
			fi := testFilter(archiveOf(entries))
			skip := map[int64]bool{}
			for err := errAgain; errors.Is(err, errAgain); {
				fi = testFilter(archiveOf(entries))
				fi.newLayer(i, below, func(int) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archives[0])), nil }, skip)
				if err = fi.run(io.Discard); err != nil && !errors.Is(err, errAgain) {
					if possible || api.CodeOf(err) != api.CodeInvalid {
						t.Fatalf("%q: %v", layers, err)
					}
					return
				}
			}
			if !possible {
				t.Fatalf("%q: a file below a file", layers)
			}
			trees = append(trees, fi.tree.root)
			below = merge(below, fi.tree.root)
		}
		if got := flat(below); !maps.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", layers, got, want)
		}
		if len(trees) < 3 {
			return
		}
		tail := trees[1]
		for _, tree := range trees[2:] {
			tail = overlaid(tail, tree)
		}
		if got := flat(merge(trees[0], settled(tail, trees[0]))); !maps.Equal(got, want) {
			t.Errorf("%q, the upper ones as one: got %v, want %v", layers, got, want)
		}
	})
}

// decoded makes layers of a program: a byte is an entry, 0xff begins the next layer.
func decoded(program []byte) [][]string {
	paths := []string{"a", "b", "a/c", "a/d", "b/c", "a/c/e", "a/c/f", "b/c/e"}
	layers := [][]string{nil}
	for _, b := range program[:min(len(program), 60)] {
		at := &layers[len(layers)-1]
		name := paths[b%8]
		dir, base := path.Split(name)
		switch b >> 4 {
		case 15:
			if len(layers) < 6 {
				layers = append(layers, nil)
			}
			continue
		case 0, 1, 2:
			*at = append(*at, "d "+name)
		case 3, 4:
			*at = append(*at, "f "+dir+".wh."+base)
		case 5:
			*at = append(*at, "f "+name+"/.wh..wh..opq")
		default:
			*at = append(*at, fmt.Sprintf("f %s=%d", name, b))
		}
		if b>>4 < 3 || b>>4 > 5 { // nothing below a file of the same layer, which is refused
			kept := (*at)[:len(*at)-1]
			clash := slices.ContainsFunc(kept, func(e string) bool {
				e, _, _ = strings.Cut(e, "=")
				return strings.HasPrefix(e, "f ") && !strings.Contains(e, ".wh.") && (strings.HasPrefix(name, e[2:]+"/") || e[2:] == name)
			})
			below := slices.ContainsFunc(kept, func(e string) bool { return strings.HasPrefix(e[2:], name+"/") })
			if clash || below && b>>4 > 5 {
				*at = kept
			}
		}
	}
	return layers
}

// apply is how a layer is unpacked on what there is: first what it removes, then what
// it brings. It cannot be where something is below what is a file of a layer below, and
// the layer does not say that it is a directory now: that it removes it is not enough.
func apply(tree map[string]string, layer int, entries []string) (possible bool) {
	before, own := maps.Clone(tree), map[string]bool{}
	remove := func(name string, itself bool) {
		maps.DeleteFunc(tree, func(p, _ string) bool { return itself && p == name || strings.HasPrefix(p, name+"/") })
	}
	for _, e := range entries {
		dir, base := path.Split(e[2:])
		if hides, ok := strings.CutPrefix(base, ".wh."); ok {
			if base == ".wh..wh..opq" {
				remove(path.Clean(dir), false)
			} else {
				remove(dir+hides, true)
			}
		}
	}
	for i, e := range entries {
		name, _, _ := strings.Cut(e[2:], "=")
		if strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		for i, c := range name {
			dir := name[:i]
			if c != '/' {
				continue
			}
			if !own[dir] && cmp.Or(before[dir], "d") != "d" {
				return false
			}
			tree[dir], own[dir] = "d", true
		}
		own[name] = e[0] == 'd'
		if e[0] == 'f' {
			remove(name, true)
			tree[name] = fmt.Sprint(layer, " ", i)
		} else if tree[name] != "d" {
			tree[name] = "d"
		}
	}
	return true
}

// flat lists a merged tree, each file with where its content is.
func flat(n *node) map[string]string {
	all := map[string]string{}
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		for base, child := range n.children {
			at := path.Join(name, base)
			switch {
			case at == "lost+found":
			case child.isDir():
				all[at] = "d"
				walk(at, child)
			case child.whiteout:
				all[at] = "whiteout"
			default:
				all[at] = fmt.Sprint(child.layer, " ", child.entry)
			}
		}
	}
	if n != nil {
		walk("", n)
	}
	return all
}

// FuzzIndex reads anything as the tree of a layer.
func FuzzIndex(f *testing.F) {
	first := testFilter(archiveOf([]string{"d d,700", "f d/a=1", "s l -> d"}))
	if err := first.run(io.Discard); err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeIndex(&b, first.tree.root); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := readIndex(bytes.NewReader(data), 1000)
		if (tree == nil) == (err == nil) {
			t.Errorf("got %v, %v", tree, err)
		}
		if err == nil && count(tree) > 1000 {
			t.Errorf("%d nodes", count(tree))
		}
	})
}

// FuzzArtifact reads anything as the config of an image of two layers.
func FuzzArtifact(f *testing.F) {
	good, err := json.Marshal(plainConfig("sha256:" + strings.Repeat("a", 64)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, 1)
	f.Add([]byte(`{"os":"linux","rootfs":{"diff_ids":["sha256:x",null]}}`), 2)
	f.Fuzz(func(t *testing.T, config []byte, layers int) {
		art := Artifact{Config: config, Layers: make([]Blob, max(0, layers%1000))}
		diffs, chains, err := art.chainIDs()
		if err != nil {
			if api.CodeOf(err) != api.CodeInvalid || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q", err)
			}
			return
		}
		if len(diffs) != len(art.Layers) || len(chains) != len(diffs) || len(chains) > maxLayers {
			t.Errorf("%d layers, %d diffs, %d chains", len(art.Layers), len(diffs), len(chains))
		}
	})
}

// FuzzPacked reads anything as an archive of images.
func FuzzPacked(f *testing.F) {
	hash := "sha256:" + strings.Repeat("a", 64)
	for _, files := range [][2]string{
		{"index.json", `{"schemaVersion":2,"manifests":[{"digest":"` + hash + `","size":1}]}`},
		{"manifest.json", `[{"Config":"manifest.json","Layers":["l"]}]`},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: files[0], Size: int64(len(files[1]))}); err != nil {
			f.Fatal(err)
		}
		if _, err := io.WriteString(w, files[1]); err != nil {
			f.Fatal(err)
		}
		f.Add(append(b.Bytes(), archiveOf([]string{"s l -> m", "h m -> l"})...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &Manager{Config: Config{MaxSize: 1 << 20}}
		p, err := m.unpack(t.TempDir(), bytes.NewReader(data), func(api.Progress) {})
		if err == nil {
			var art Artifact
			if art, err = p.artifact(); err == nil {
				for _, l := range art.Layers {
					if r, err := l.Open(context.Background(), 0); err == nil {
						r.Close()
					}
				}
				_, _, err = art.chainIDs()
			}
		}
		if code := api.CodeOf(err); err != nil && code != api.CodeInvalid && code != api.CodeUnsupported || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("got %q", err)
		}
	})
}
