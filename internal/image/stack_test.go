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
func entry(t *testing.T, w *tar.Writer, text string) {
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

func layerArchive(t *testing.T, entries ...string) []byte {
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

// whiteouts are the corner cases of layers upon layers, with the tree that is to be
// seen.
var whiteouts = map[string]struct {
	layers [][]string
	want   []string
}{
	"a file is removed":               {[][]string{{"f a", "f b"}, {"f .wh.a"}}, []string{"f b"}},
	"a directory is removed":          {[][]string{{"f d/a", "f b"}, {"f .wh.d"}}, []string{"f b"}},
	"a file in a directory":           {[][]string{{"d d,700", "f d/a", "f d/b"}, {"f d/.wh.a"}}, []string{"d d,700", "f d/b"}},
	"implied parents keep their mode": {[][]string{{"d tmp,1777", "d tmp/x,700"}, {"f tmp/x/y/f"}}, []string{"d tmp,1777", "d tmp/x,700", "d tmp/x/y", "f tmp/x/y/f"}},
	"what is not there is hidden":     {[][]string{{"d d", "f d/a"}, {"f d/.wh.none", "f .wh.nothing", "f e/.wh.x"}}, []string{"d d", "f d/a"}},
	"an opaque directory":             {[][]string{{"f d/a", "f d/b"}, {"f d/.wh..wh..opq", "f d/c"}}, []string{"d d", "f d/c"}},
	"opaque after its contents":       {[][]string{{"f d/a"}, {"d d,700", "f d/c", "f d/.wh..wh..opq"}}, []string{"d d,700", "f d/c"}},
	"an opaque directory alone":       {[][]string{{"d d,711", "f d/a"}, {"f d/.wh..wh..opq"}}, []string{"d d,711"}},
	"opaque where nothing is":         {[][]string{{"f a"}, {"d d", "f d/.wh..wh..opq", "f d/b"}}, []string{"f a", "d d", "f d/b"}},
	"an opaque root":                  {[][]string{{"f a", "f d/b", "f e/b"}, {"f .wh..wh..opq", "f d/c"}}, []string{"d d", "f d/c"}},
	"whiteout and file":               {[][]string{{"f a=1"}, {"f .wh.a", "f a=2"}}, []string{"f a=2"}},
	"file and whiteout":               {[][]string{{"f a=1"}, {"f a=2", "f .wh.a"}}, []string{"f a=2"}},
	"whiteout and directory":          {[][]string{{"f d/a"}, {"f .wh.d", "d d,700", "f d/b"}}, []string{"d d,700", "f d/b"}},
	"directory and whiteout":          {[][]string{{"f d/a"}, {"f d/b", "f .wh.d"}}, []string{"d d", "f d/b"}},
	"a file becomes a directory":      {[][]string{{"f x=1"}, {"d x", "f x/y"}}, []string{"d x", "f x/y"}},
	"a directory becomes a file":      {[][]string{{"f x/y"}, {"f x=1"}}, []string{"f x=1"}},
	"a directory comes back":          {[][]string{{"f d/a"}, {"f .wh.d"}, {"f d/b"}}, []string{"d d", "f d/b"}},
	"a file between directories":      {[][]string{{"f d/a"}, {"f d=1"}, {"d d", "f d/b"}}, []string{"d d", "f d/b"}},
	"removed, made, removed":          {[][]string{{"f a=1"}, {"f .wh.a"}, {"f a=2"}, {"f .wh.a"}, {"f b"}}, []string{"f b"}},
	"whiteouts in whiteouts":          {[][]string{{"f d/e/a", "f d/e/b"}, {"f d/e/.wh.a"}, {"f d/.wh.e", "f d/e/c"}}, []string{"d d", "d d/e", "f d/e/c"}},
	"a hard link in a layer":          {[][]string{{"f a=1", "h b -> a"}}, []string{"f a=1", "h b -> a"}},
	"a hard link across layers":       {[][]string{{"f a=1,600"}, {"h d/b -> a"}}, []string{"f a=1,600", "d d", "f d/b=1,600"}},
	"two hard links across layers":    {[][]string{{"f a=1"}, {"h b -> a", "h c -> b", "h d -> a"}}, []string{"f a=1", "f b=1", "h c -> b", "h d -> b"}},
	"a hard link across three layers": {[][]string{{"f a=1"}, {"h b -> a"}, {"h c -> b", "f .wh.a"}}, []string{"f b=1", "f c=1"}},
	"a hard link, its target hidden":  {[][]string{{"f a=1"}, {"h b -> a", "f .wh.a"}}, []string{"f b=1"}},
	"a hard link to a link below":     {[][]string{{"s l -> nowhere"}, {"h m -> l"}}, []string{"s l -> nowhere", "s m -> nowhere"}},
	"through a link below":            {[][]string{{"d usr/lib,711", "s lib -> usr/lib"}, {"f lib/x=1"}}, []string{"s lib -> usr/lib", "d usr", "d usr/lib,711", "f usr/lib/x=1"}},
	"through an absolute link":        {[][]string{{"d run,711", "d var", "s var/run -> /run"}, {"f var/run/x"}}, []string{"d run,711", "f run/x", "d var", "s var/run -> /run"}},
	"through a link upwards":          {[][]string{{"d a", "s a/up -> ../../../b"}, {"f a/up/x"}}, []string{"d a", "s a/up -> ../../../b", "d b", "f b/x"}},
	"a whiteout through a link":       {[][]string{{"f usr/x", "s u -> usr"}, {"f u/.wh.x"}}, []string{"s u -> usr", "d usr"}},
	"a file twice":                    {[][]string{{"f a=1", "f b", "f a=22"}}, []string{"f a=22", "f b"}},
	"a file three times":              {[][]string{{"f a=1", "f a=22", "s a -> b"}}, []string{"s a -> b"}},
	"a directory replaced":            {[][]string{{"d d", "f d/a", "d d,700", "f d=1"}}, []string{"f d=1"}},
	"a file replaced by a directory":  {[][]string{{"f d=1", "d d", "f d/a"}}, []string{"d d", "f d/a"}},
	"a directory twice":               {[][]string{{"d d,700", "f d/a", "d d,711"}}, []string{"d d,711", "f d/a"}},
	"aufs leftovers":                  {[][]string{{"f a", "f .wh..wh.aufs", "f .wh..wh.plnk/1.2", "d .wh..wh.orph"}}, []string{"f a"}},
	"an empty layer":                  {[][]string{{"f a"}, {}, {"f b"}}, []string{"f a", "f b"}},
	"the root's mode":                 {[][]string{{"d .,711", "f a"}, {"f b"}}, []string{"f a", "f b"}},
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
