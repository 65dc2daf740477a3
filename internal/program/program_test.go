package program

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
	"testing"

	"banger/internal/guest/wire"
)

// unpack extracts a pack, as flat as it is.
func unpack(t *testing.T, r io.Reader) string {
	t.Helper()
	dir := t.TempDir()
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		where := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.Mkdir(where, fs.FileMode(h.Mode))
		} else {
			var text []byte
			if text, err = io.ReadAll(archive); err == nil {
				err = os.WriteFile(where, text, fs.FileMode(h.Mode))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A program runs with nothing but its pack.
func TestPack(t *testing.T) {
	write, err := Pack(t.Context(), "ls")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	dir := unpack(t, &b)
	lib := filepath.Join(dir, wire.LentLibraries)
	// What of the libraries is loaded comes from the pack.
	out, err := exec.Command(filepath.Join(dir, wire.LentLoader), "--library-path", lib, "--list", filepath.Join(dir, wire.LentProgram)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if _, where, ok := strings.Cut(line, " => "); ok && !strings.HasPrefix(where, dir+"/") {
			t.Errorf("it loads %s", line)
		}
	}
	out, err = exec.Command(filepath.Join(dir, wire.LentLoader), "--library-path", lib, filepath.Join(dir, wire.LentProgram), dir).CombinedOutput()
	if err != nil || string(out) != wire.LentLibraries+"\n"+wire.LentLoader+"\n"+wire.LentProgram+"\n" {
		t.Errorf("it said %q (%v)", out, err)
	}
}

func TestPackRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := Pack(t.Context(), "absent"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(t.Context(), "script"); err == nil {
		t.Error("a script is packed without what runs it")
	}
}

func TestParseList(t *testing.T) {
	const musl = `	/lib/ld-musl-x86_64.so.1 (0x7f0)
	libz.so.1 => /lib/libz.so.1 (0x7f1)
	libz.so.1 => /lib/libz.so.1 (0x7f1)
	libc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f0)
`
	files, err := parseList(musl, "/lib/ld-musl-x86_64.so.1")
	if err != nil || len(files) != 1 || files[0] != (file{"lib/libz.so.1", "/lib/libz.so.1"}) {
		t.Errorf("%v (%v)", files, err)
	}
	if files, err := parseList("\tlinux-vdso.so.1 (0x7f)\n\tlibx.so => not found\n", "/lib64/ld.so"); err == nil {
		t.Errorf("a library that is not there: %v", files)
	}
}

// A program without a loader, as Go makes them, is its own pack.
func TestPackStatic(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "static"), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files, err := parts(t.Context(), filepath.Join(dir, "static"))
	if err != nil || len(files) != 1 {
		t.Errorf("%v (%v)", files, err)
	}
}
