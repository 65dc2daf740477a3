package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
	extract(t, to, &archive, ExtractOptions{Top: "copy", Owners: true, Devices: true})
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
	if want, got := see(filepath.Join(from, "tree")), see(filepath.Join(to, "copy")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
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
	for name, tc := range map[string]struct {
		entries []tar.Header
		refused bool // by name; otherwise by the file system
	}{
		"absolute":                   {[]tar.Header{file("/etc/passwd")}, true},
		"parent":                     {[]tar.Header{file("../outside/x")}, true},
		"parent in the middle":       {[]tar.Header{file("top/../../outside/x")}, true},
		"another top":                {[]tar.Header{file("other")}, true},
		"through an absolute link":   {[]tar.Header{link("top", "OUTSIDE"), file("top/x")}, false},
		"through a relative link":    {[]tar.Header{link("top", "../outside"), file("top/x")}, false},
		"directory through a link":   {[]tar.Header{link("top", "../outside"), {Name: "top/d", Typeflag: tar.TypeDir, Mode: 0o755}}, false},
		"hard link to outside":       {[]tar.Header{{Name: "top", Typeflag: tar.TypeLink, Linkname: "../outside/kept"}}, true},
		"hard link through a link":   {[]tar.Header{{Name: "top/", Typeflag: tar.TypeDir, Mode: 0o755}, link("top/l", "../../outside"), {Name: "top/h", Typeflag: tar.TypeLink, Linkname: "top/l/kept"}}, false},
		"device":                     {[]tar.Header{{Name: "top", Typeflag: tar.TypeBlock, Devmajor: 8}}, true},
		"pipe":                       {[]tar.Header{{Name: "top", Typeflag: tar.TypeFifo}}, true},
		"file below a file":          {[]tar.Header{file("top"), file("top/x")}, false},
		"file in place of directory": {[]tar.Header{{Name: "top/", Typeflag: tar.TypeDir, Mode: 0o755}, file("top")}, false},
		"unknown type":               {[]tar.Header{{Name: "top", Typeflag: 'Z'}}, true},
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
				if h.Size > 0 {
					if _, err := w.Write([]byte("evil")); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(inside)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := Extract(root, &archive, ExtractOptions{Top: "top"}); err == nil || errors.Is(err, ErrEntry) != tc.refused {
				t.Errorf("got %v", err)
			}
			entries, err := os.ReadDir(outside)
			content, rerr := os.ReadFile(filepath.Join(outside, "kept"))
			if err != nil || rerr != nil || len(entries) != 1 || string(content) != "kept" {
				t.Errorf("outside: %v, %v, %q, %v", entries, err, content, rerr)
			}
			if parts, _ := filepath.Glob(filepath.Join(inside, ".banger-*")); len(parts) > 0 {
				t.Errorf("left: %q", parts)
			}
		})
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
	extract(t, dir, &archive, ExtractOptions{Top: "."})
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
		_ = Extract(root, bytes.NewReader(text), ExtractOptions{Top: "."}) // most are refused
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Errorf("outside: %v, %v", entries, err)
		}
	})
}
