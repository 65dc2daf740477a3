package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/intake"
)

// entry is an entry of a layer's archive in few words: "d name", "f name=content",
// "s name -> target", "h name -> target", each with what follows a comma as the mode.
func entry(t testing.TB, w *tar.Writer, text string) {
	t.Helper()
	hdr := &tar.Header{Format: tar.FormatPAX, Mode: 0o755, ModTime: time.Unix(1e9, 0)}
	text, mode, _ := strings.Cut(text, ",")
	if mode != "" {
		if _, err := fmt.Sscanf(mode, "%o", &hdr.Mode); err != nil {
			t.Fatal(err)
		}
	}
	kind, name, _ := strings.Cut(text, " ")
	content := ""
	switch kind {
	case "d":
		hdr.Typeflag, hdr.Name = tar.TypeDir, name+"/"
	case "f":
		hdr.Typeflag = tar.TypeReg
		hdr.Name, content, _ = strings.Cut(name, "=")
		hdr.Size = int64(len(content))
	case "s", "h":
		hdr.Typeflag = map[string]byte{"s": tar.TypeSymlink, "h": tar.TypeLink}[kind]
		hdr.Name, hdr.Linkname, _ = strings.Cut(name, " -> ")
	default:
		t.Fatalf("entry %q", text)
	}
	if err := w.WriteHeader(hdr); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
}

func layerArchive(t testing.TB, entries ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		entry(t, w, e)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func testFilter(data []byte) *filter {
	raw := &meter{r: bytes.NewReader(data)}
	return newFilter(&source{raw: raw, r: raw, format: intake.Plain, sum: sha256.New(), left: 1 << 30}, 1<<30, 100_000, func(int64) {})
}

// ext4 makes a file system of what write writes.
func ext4(t *testing.T, write func(out *sparseWriter) error) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := write(&sparseWriter{f: f}); err != nil {
		t.Fatal(err)
	}
	return file
}

// disks makes the disks of layers, and their trees as they come out of the index.
func disks(t *testing.T, layers [][]byte) (paths []string, trees []*node) {
	t.Helper()
	var below *node
	opened := func(i int) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layers[i])), nil }
	for i, data := range layers {
		var f *filter
		skip := map[int64]bool{}
		path := ext4(t, func(out *sparseWriter) error {
			f = testFilter(data)
			f.newLayer(i, below, opened, skip)
			return ignoreAgain(convert(f, out, 1<<30))
		})
		if f.stack.stale {
			path = ext4(t, func(out *sparseWriter) error {
				f = testFilter(data)
				f.newLayer(i, below, opened, skip)
				return convert(f, out, 1<<30)
			})
		}
		var index bytes.Buffer
		if err := writeIndex(&index, f.tree.root); err != nil {
			t.Fatal(err)
		}
		tree, err := readIndex(&index, 1000)
		if err != nil {
			t.Fatal(err)
		}
		paths, trees = append(paths, path), append(trees, tree)
		below = merge(below, tree)
	}
	return paths, trees
}

func ignoreAgain(err error) error {
	if errors.Is(err, errAgain) {
		return nil
	}
	return err
}

// mounted mounts disks as the guest does, the first one lowest.
func mounted(t *testing.T, disks ...string) string {
	t.Helper()
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	mount := func(dir string, args ...string) {
		run(append(append([]string{"mount"}, args...), dir)...)
		t.Cleanup(func() { run("umount", dir) })
	}
	base, err := os.MkdirTemp("", "layers") // a test's own would have its name, with what an option must not have
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(base) })
	mount(base, "-t", "tmpfs", "tmpfs")
	lower := []string{base + "/empty"}
	for i, disk := range disks {
		dir := fmt.Sprintf("%s/%d", base, i)
		run("mkdir", dir)
		mount(dir, "-o", "loop,ro,noload", disk)
		lower = append(lower, dir)
	}
	run("mkdir", base+"/empty", base+"/all")
	slices.Reverse(lower)
	mount(base+"/all", "-t", "overlay", "-o", "lowerdir="+strings.Join(lower, ":"), "overlay")
	return base + "/all"
}

// listed says what is in a tree, in the words of entry.
func listed(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	inodes := map[[2]uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		if name == "lost+found" {
			return fs.SkipDir
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		text := "f " + name
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			text = "d " + name
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text = "s " + name + " -> " + target
		case syscall.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(content) > 0 {
				text += "=" + string(content)
			}
			inode := [2]uint64{st.Dev, st.Ino}
			if first, ok := inodes[inode]; ok {
				text = "h " + name + " -> " + first
			} else if st.Nlink > 1 {
				inodes[inode] = name
			}
		default:
			text = "? " + name
		}
		if mode := st.Mode & 0o7777; mode != 0o755 && st.Mode&syscall.S_IFMT != syscall.S_IFLNK {
			text += fmt.Sprintf(",%o", mode)
		}
		all = append(all, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLayersAreMerged sees each case as a guest would: as an overlay of the layers'
// disks, as one of them with all but the first in one disk, and flattened.
func TestLayersAreMerged(t *testing.T) {
	for name, c := range whiteouts {
		t.Run(name, func(t *testing.T) {
			var archives [][]byte
			for _, entries := range c.layers {
				archives = append(archives, layerArchive(t, entries...))
			}
			paths, trees := disks(t, archives)
			opened := func(i int) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archives[i])), nil }
			if got := listed(t, mounted(t, paths...)); !slices.Equal(got, c.want) {
				t.Errorf("overlay: %q, want %q", got, c.want)
			}
			var whole *node
			for _, tree := range trees {
				whole = merge(whole, tree)
			}
			one := ext4(t, func(out *sparseWriter) error { return writeFlat(t.Context(), out, whole, opened, 1<<30) })
			if got := listed(t, mounted(t, one)); !slices.Equal(unlinked(got), unlinked(c.want)) {
				t.Errorf("flattened: %q, want %q", got, c.want)
			}
			if len(trees) < 3 {
				return
			}
			tail := trees[1]
			for _, tree := range trees[2:] {
				tail = overlaid(tail, tree)
			}
			rest := ext4(t, func(out *sparseWriter) error {
				return writeFlat(t.Context(), out, settled(tail, trees[0]), opened, 1<<30)
			})
			if got := listed(t, mounted(t, paths[0], rest)); !slices.Equal(unlinked(got), unlinked(c.want)) {
				t.Errorf("tail merged: %q, want %q", got, c.want)
			}
		})
	}
}

// unlinked forgets which names are links of one file: files of several layers are that
// only where the layers are one.
func unlinked(list []string) []string {
	content := map[string]string{}
	list = slices.Clone(list)
	for i, e := range list {
		e, _, _ = strings.Cut(e, ",")
		kind, rest, _ := strings.Cut(e, " ")
		name, text, _ := strings.Cut(rest, "=")
		if kind == "h" {
			name, text, _ = strings.Cut(rest, " -> ")
			text = content[text]
		}
		if kind == "f" || kind == "h" {
			content[name], list[i] = text, "f "+name+"="+text
		}
	}
	return list
}

// TestNoMarksShow looks into the disks for marks that hide nothing, which a guest
// would see in a directory that is in one layer alone.
func TestNoMarksShow(t *testing.T) {
	_, trees := disks(t, [][]byte{layerArchive(t, "f d/a"), layerArchive(t, "f d/.wh.x", "f e/.wh.x", "f e/f", "d e/g", "f e/g/.wh..wh..opq", "f d/.wh.a")})
	var marks []string
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		if n.whiteout || n.opaque {
			marks = append(marks, name)
		}
		for _, base := range slices.Sorted(maps.Keys(n.children)) {
			walk(name+"/"+base, n.children[base])
		}
	}
	walk("", trees[1])
	if !slices.Equal(marks, []string{"/d/a"}) {
		t.Errorf("marks: %q", marks)
	}
}
