// Package program packs a program of this host with all that it needs to run in another
// system of the same architecture, whatever that has or lacks: the loader and the
// libraries that it is linked with.
package program

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/guest/wire"
)

const (
	maxLibraries = 256
	maxFile      = 64 << 20 // bytes
	listTime     = 10 * time.Second
)

// file is one of the files of a pack.
type file struct{ name, path string }

// Pack finds a program in PATH and what it needs. What it returns writes that as a tar
// archive, with the names of package wire, in which everybody may read and run the files.
func Pack(ctx context.Context, name string) (write func(io.Writer) error, err error) {
	where, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", name, errors.Unwrap(err))
	}
	files, err := parts(ctx, where)
	if err != nil {
		return nil, err
	}
	return func(w io.Writer) error { return writeAll(w, files) }, nil
}

// parts lists what a program consists of.
func parts(ctx context.Context, where string) ([]file, error) {
	files := []file{{wire.LentProgram, where}}
	loader, err := loaderOf(where)
	if err != nil || loader == "" {
		return files, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	// Both glibc's and musl's say so what they would load, and run nothing of it.
	cmd := exec.CommandContext(ctx, loader, "--list", where)
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %s --list: %w", where, loader, err)
	}
	libraries, err := parseList(string(out), loader)
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", where, err)
	}
	return append(append(files, file{wire.LentLoader, loader}), libraries...), nil
}

// loaderOf is the interpreter that an ELF file names, or nothing.
func loaderOf(where string) (string, error) {
	f, err := elf.Open(where)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", where, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
		if err != nil {
			return "", fmt.Errorf("read %s: %w", where, err)
		}
		return string(bytes.TrimRight(text, "\x00")), nil
	}
	return "", nil
}

// parseList reads what a loader lists, as ldd(1) shows it: "NAME => PATH (ADDRESS)", and
// without an arrow the loader itself and what the kernel provides.
func parseList(text, loader string) ([]file, error) {
	var files []file
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		name, where, ok := strings.Cut(strings.TrimSpace(line), " => ")
		if !ok {
			continue
		}
		if at := strings.LastIndex(where, " (0x"); at >= 0 {
			where = where[:at]
		}
		if !filepath.IsAbs(where) {
			return nil, fmt.Errorf("%s: %s", name, where)
		}
		base := path.Base(name)
		if where == loader || seen[base] {
			continue
		}
		seen[base] = true
		if files = append(files, file{path.Join(wire.LentLibraries, base), where}); len(files) > maxLibraries {
			return nil, fmt.Errorf("more than %d", maxLibraries)
		}
	}
	return files, nil
}

func writeAll(w io.Writer, files []file) error {
	t := tar.NewWriter(w)
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: wire.LentLibraries + "/", Mode: 0o755})
	for _, f := range files {
		if err == nil {
			err = add(t, f)
		}
	}
	return errors.Join(err, t.Close())
}

func add(t *tar.Writer, part file) error {
	f, err := os.Open(part.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxFile) {
		err = &fs.PathError{Op: "pack", Path: part.path, Err: errors.New("no regular file, or too large")}
	}
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: part.name, Mode: 0o755, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		return err
	}
	_, err = io.CopyN(t, f, info.Size())
	return err
}
