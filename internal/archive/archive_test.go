package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRoundTrip copies a tree and compares what find(1) sees of both.
func TestRoundTrip(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	script := `mkdir -p tree/sub tree/empty; echo data >tree/sub/file; chmod 4751 tree/sub/file; chown 12:34 tree/sub/file
		ln tree/sub/file tree/second; ln -s sub/file tree/link; ln -s /etc/passwd tree/absolute; mkfifo tree/pipe; mknod tree/null c 1 3
		printf x >'tree/new
line'; truncate -s 1M tree/hole; touch -d @1000000000 tree/sub/file; chmod 555 tree/empty; touch -h -d @1000000001 tree/empty`
	shell := exec.Command("sh", "-ec", script)
	shell.Dir = from
	if out, err := shell.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var archive bytes.Buffer
	if err := Write(&archive, filepath.Join(from, "tree"), WriteOptions{Name: "copy", Xattrs: true}); err != nil {
		t.Fatal(err)
	}
	quick := bytes.NewBuffer(bytes.Clone(archive.Bytes()))
	extract(t, to, &archive, ExtractOptions{Name: "again", Owners: true, Devices: true})
	extract(t, to, quick, ExtractOptions{Name: "quick", Owners: true, Devices: true, Quick: true})
	see := func(dir string) string {
		sorted := exec.Command("sh", "-c", `find . ! -type l ! -type d -printf '%p %y %m %U:%G %n %s %Ts\n' | sort
			find . -type l -printf '%p %l\n' | sort; find . -mindepth 1 -type d -printf '%p %m %Ts\n' | sort`)
		sorted.Dir = dir
		out, err := sorted.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for _, name := range []string{"again", "quick"} {
		if want, got := see(filepath.Join(from, "tree")), see(filepath.Join(to, name)); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

func extract(t *testing.T, dir string, archive *bytes.Buffer, o ExtractOptions) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Extract(root, archive, o); err != nil {
		t.Fatal(err)
	}
}

// TestHostile extracts what a hostile guest might send. Nothing outside of the
// directory changes, and what is refused is named.
func TestHostile(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
	}
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	for name, tc := range map[string]struct {
		entries []tar.Header
		refused bool // by name; otherwise by the file system
	}{
		"absolute":                   {[]tar.Header{file("/etc/passwd")}, true},
		"parent":                     {[]tar.Header{file("../outside/x")}, true},
		"parent in the middle":       {[]tar.Header{dir("top"), file("top/../../outside/x")}, true},
		"beside the tree":            {[]tar.Header{dir("top"), file("beside")}, true},
		"beside the file":            {[]tar.Header{file("top"), file("beside")}, true},
		"below the file":             {[]tar.Header{file("top"), file("top/beside")}, true},
		"below a link":               {[]tar.Header{link("top", "."), file("top/beside")}, true},
		"not a directory":            {[]tar.Header{file(".")}, true},
		"through an absolute link":   {[]tar.Header{dir("."), link("l", "OUTSIDE"), file("l/x")}, false},
		"through a relative link":    {[]tar.Header{dir("."), link("l", "../../outside"), file("l/x")}, false},
		"through a link to beside":   {[]tar.Header{dir("."), link("l", ".."), file("l/beside")}, false},
		"through a chain of links":   {[]tar.Header{dir("."), link("a", ".."), link("b", "a/.."), file("b/outside/x")}, false},
		"directory through a link":   {[]tar.Header{dir("."), link("l", "../../outside"), dir("l/d")}, false},
		"hard link to outside":       {[]tar.Header{dir("."), {Name: "h", Typeflag: tar.TypeLink, Linkname: "../../outside/kept"}}, true},
		"hard link to absolute":      {[]tar.Header{dir("."), {Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}, true},
		"hard link through a link":   {[]tar.Header{dir("."), link("l", "../../outside"), {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/kept"}}, false},
		"hard link first":            {[]tar.Header{{Name: "top", Typeflag: tar.TypeLink, Linkname: "../kept"}}, true},
		"block device":               {[]tar.Header{{Name: "top", Typeflag: tar.TypeBlock, Devmajor: 8}}, true},
		"character device":           {[]tar.Header{dir("."), {Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, true},
		"pipe":                       {[]tar.Header{{Name: "top", Typeflag: tar.TypeFifo}}, true},
		"file below a file":          {[]tar.Header{dir("."), file("f"), file("f/x")}, false},
		"file in place of directory": {[]tar.Header{dir("."), dir("d"), file("d")}, false},
		"directory in place of file": {[]tar.Header{dir("."), file("d"), dir("d")}, false},
		"unknown type":               {[]tar.Header{{Name: "top", Typeflag: 'Z'}}, true},
		"long name":                  {[]tar.Header{dir("."), file(strings.Repeat("long/", 900) + "x")}, true},
		"long element":               {[]tar.Header{dir("."), file(strings.Repeat("long", 100))}, false},
		"more than there is room":    {[]tar.Header{{Name: "top", Typeflag: tar.TypeReg, Size: 1 << 60}}, false},
		"nothing":                    {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			outside, inside := filepath.Join(parent, "outside"), filepath.Join(parent, "inside")
			for _, dir := range []string{outside, inside} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(outside, "kept"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			for _, h := range tc.entries {
				if h.Linkname == "OUTSIDE" {
					h.Linkname = outside
				}
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if h.Size == 4 {
					if _, err := w.Write([]byte("evil")); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Flush(); err == nil {
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
			}
			root, err := os.OpenRoot(inside)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := Extract(root, &archive, ExtractOptions{Name: "top", Room: func() (int64, error) { return 1 << 30, nil }}); err == nil || errors.Is(err, ErrEntry) != tc.refused {
				t.Errorf("got %v", err)
			}
			entries, err := os.ReadDir(outside)
			content, rerr := os.ReadFile(filepath.Join(outside, "kept"))
			if err != nil || rerr != nil || len(entries) != 1 || string(content) != "kept" {
				t.Errorf("outside: %v, %v, %q, %v", entries, err, content, rerr)
			}
			for _, dir := range []string{inside, filepath.Join(inside, "top")} {
				if parts, _ := filepath.Glob(filepath.Join(dir, ".banger-*")); len(parts) > 0 {
					t.Errorf("left: %q", parts)
				}
			}
			if beside, err := os.ReadDir(inside); err != nil || len(beside) > 1 || len(beside) == 1 && beside[0].Name() != "top" {
				t.Errorf("beside what was asked for: %v, %v", beside, err)
			}
		})
	}
}

// TestLinkInPlaceOfTree has a link where the tree is to be made: it is not followed.
func TestLinkInPlaceOfTree(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "other"), 0o755), os.Symlink("other", filepath.Join(dir, "top"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var archive bytes.Buffer
	if err := Write(&archive, t.TempDir(), WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := Extract(root, &archive, ExtractOptions{Name: "top"}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("got %v", err)
	}
}

// TestCutOff has archives that end too early, each of which is an error; what is
// there under its name is whole.
func TestCutOff(t *testing.T) {
	from := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(from, name), bytes.Repeat([]byte("x"), 3000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var whole bytes.Buffer
	if err := Write(&whole, from, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for length := 100; length < whole.Len()-1024; length += 700 {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := Extract(root, bytes.NewReader(whole.Bytes()[:length]), ExtractOptions{Name: "tree"}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", length, err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "tree", "*"))
		parts, partErr := filepath.Glob(filepath.Join(dir, "tree", ".banger-*"))
		if err != nil || partErr != nil || len(parts) > 0 {
			t.Errorf("%d bytes: left %q, %v, %v", length, parts, err, partErr)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || info.Size() != 3000 {
				t.Errorf("%d bytes: %s has %d, %v", length, file, info.Size(), err)
			}
		}
		if err := root.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnreadable has a tree that cannot be read to its end: what was written of the
// archive is no whole one.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/mem", filepath.Join(dir, "z")); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := &writer{tar: tar.NewWriter(&archive), links: map[inode]string{}, buf: make([]byte, copyBuffer)}
	info, err := os.Stat(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.add(filepath.Join(dir, "a"), "a", info); err != nil {
		t.Fatal(err)
	}
	if err := w.add(filepath.Join(dir, "z"), "z", info); !errors.Is(err, syscall.ELOOP) { // it was a file before
		t.Errorf("a link in place of a file: %v", err)
	}
	w.cut(&archive)
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Extract(root, &archive, ExtractOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("extracted: %v", err)
	}
}

// TestModes are those of a copy whose owners are not kept.
func TestModes(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1500, ModTime: time.Unix(1e9, 0)},
		{Name: "d/setuid", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 12},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	extract(t, dir, &archive, ExtractOptions{})
	for name, want := range map[string]fs.FileMode{"d": fs.ModeDir | 0o500, "d/setuid": 0o755} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Lstat(filepath.Join(dir, "d")); err != nil || info.ModTime().Unix() != 1e9 {
		t.Errorf("date of d: %v, %v", info.ModTime(), err)
	}
}

// FuzzExtract extracts anything: it does not crash, and nothing outside changes.
func FuzzExtract(f *testing.F) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []tar.Header{{Name: "top/", Typeflag: tar.TypeDir}, {Name: "top/l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, {Name: "top/l/x", Typeflag: tar.TypeReg}} {
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(archive.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<20 {
			return
		}
		parent := t.TempDir()
		if err := os.Mkdir(filepath.Join(parent, "inside"), 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(filepath.Join(parent, "inside"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		room := func() (int64, error) { return 1 << 20, nil }
		_ = Extract(root, bytes.NewReader(text), ExtractOptions{Name: "it", Room: room}) // most are refused
		if entries, err := os.ReadDir(filepath.Join(parent, "inside")); err != nil || len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "it" {
			t.Errorf("beside: %v, %v", entries, err)
		}
		_ = Extract(root, bytes.NewReader(text), ExtractOptions{Room: room}) // most are refused
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Errorf("outside: %v, %v", entries, err)
		}
	})
}
