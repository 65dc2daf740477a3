package archive

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/linux"
)

// ErrEntry is in the chain of the errors for entries that are refused.
var ErrEntry = errors.New("refused")

const (
	maxName = 4095 // bytes of an entry's name: PATH_MAX of limits.h without its NUL
	// maxPending bounds the memory, in bytes, for what directories get at the end.
	maxPending = 64 << 20
	copyBuffer = 256 << 10
	// yieldEvery is after how many entries Go's scheduler has a turn. To it, small files are
	// one long run of system calls; where one takes more than 20 µs, as in an emulated
	// machine, its monitor would wake up thousands of times a second to look after it:
	// a third of the time on one CPU.
	yieldEvery = 8
)

// ExtractOptions say how Extract makes files.
type ExtractOptions struct {
	// Name is what the archive's one tree, or its one file, becomes in the directory,
	// whatever it is called in the archive; nothing else is touched. Where it is
	// empty, everything is extracted under its own name, and what the archive says of
	// the directory itself, ".", is left out.
	Name    string
	Owners  bool        // give files the owners, all mode bits and extended attributes that the archive names
	Devices bool        // make device nodes and pipes, which are refused otherwise
	Umask   fs.FileMode // permissions that files do not get, unless Owners is set
	// Quick has small files made under their own names at once, when all of their
	// content is there: a crash of the machine may leave an empty one. It is twice as
	// fast where system calls are slow.
	Quick bool
	// Room, if it is not nil, says how many bytes there is space for; larger files are
	// refused before they are begun.
	Room func() (int64, error)
}

// Extract makes what the tar archive r holds in the directory root. A file is there
// under its name only when it is complete; one that is there already is replaced,
// a directory is kept and added to. Names that lead out of the directory, by
// themselves or through symbolic links, are refused. What was extracted before an
// error stays.
func Extract(root *os.Root, r io.Reader, o ExtractOptions) (err error) {
	x := &extractor{root: root, top: o.Name, o: o, part: ".banger-" + rand.Text() + "-", buf: make([]byte, copyBuffer)}
	defer func() { err = errors.Join(err, x.close()) }()
	err = x.all(r)
	// Also after an error: what is there is to be as the archive says.
	if derr := x.finishDirs(); err == nil {
		err = derr
	}
	return err
}

// all extracts all entries.
func (x *extractor) all(r io.Reader) error {
	archive := tar.NewReader(r)
	entries := 0
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if entries%yieldEvery == 0 {
			runtime.Gosched()
		}
		if entries++; entries == 1 && x.o.Name != "" {
			err = x.first(h, archive)
		} else {
			err = x.entry(h, archive)
		}
		if err != nil && !errors.Is(err, ErrEntry) {
			err = fmt.Errorf("extract %.300q: %w", h.Name, err)
		}
		if err != nil {
			return err
		}
	}
	if entries == 0 && x.o.Name != "" {
		return fmt.Errorf("read archive: it is empty: %w", io.ErrUnexpectedEOF)
	}
	return nil
}

type extractor struct {
	root    *os.Root // what all names are in: the directory, or the tree in it
	tree    *os.Root // root, where it is ours to close
	top     string   // what the archive calls root; empty where it is the directory
	done    bool     // the one file has been extracted
	o       ExtractOptions
	part    string // how files are called until they are complete, with a number
	parts   int
	buf     []byte
	dirs    []dirEntry
	pending int // bytes that dirs take, about

	// The directory of the last entry, in which the next one probably is too.
	dir     string
	in      *os.Root
	inFile  *os.File
	mask    uint32 // linux.CreateMask of it
	aliased bool   // in is root itself
}

// dirEntry is a directory whose mode and date are set at the end: what is put into
// it would change the one, and may be forbidden by the other.
type dirEntry struct {
	name string // in root; "." for root
	h    *tar.Header
}

func refuse(h *tar.Header, format string, args ...any) error {
	return fmt.Errorf("archive entry %.300q is %w: %s", h.Name, ErrEntry, fmt.Sprintf(format, args...))
}

// local returns a name in the archive as a path below root.
func (x *extractor) local(h *tar.Header, name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case len(name) > maxName:
		return "", refuse(h, "its name has %d bytes, more than %d", len(name), maxName)
	case name == "" || path.IsAbs(name) || strings.ContainsRune(name, 0):
		return "", refuse(h, "%.300q is not the name of anything in the directory", name)
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", refuse(h, "%.300q has .. in it", name)
	case x.done:
		return "", refuse(h, "one file was asked for, and this is another one")
	case x.top == "" || x.top == ".":
		return clean, nil
	case clean == x.top:
		return ".", nil
	}
	below, ok := strings.CutPrefix(clean, x.top+"/")
	if !ok {
		return "", refuse(h, "%.300q is not in %.300q, as the first entry is", name, x.top)
	}
	return below, nil
}

// first extracts the entry that is to be called o.Name. If it is a directory, all
// others have to be in it.
func (x *extractor) first(h *tar.Header, content io.Reader) error {
	x.top = ""
	name, err := x.local(h, h.Name)
	if err != nil {
		return err
	}
	x.top = name
	if h.Typeflag != tar.TypeDir {
		if name == "." {
			return refuse(h, "the directory itself is no file")
		}
		err := x.make(h, x.o.Name, content)
		x.done = true
		return err
	}
	made, err := mkdir(x.root, x.o.Name)
	if err != nil {
		return err
	}
	// A link would lead to a directory that nobody asked for.
	if info, err := x.root.Lstat(x.o.Name); err != nil || !info.IsDir() {
		return errors.Join(err, &fs.PathError{Op: "extract to", Path: x.o.Name, Err: syscall.ENOTDIR})
	}
	tree, err := x.root.OpenRoot(x.o.Name)
	if err != nil {
		return err
	}
	x.root, x.tree = tree, tree
	if made {
		return x.later(h, ".")
	}
	return nil
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	name, err := x.local(h, h.Name)
	if err != nil {
		return err
	}
	if name != "." {
		return x.make(h, name, content)
	}
	if h.Typeflag != tar.TypeDir {
		return refuse(h, "the directory itself is no file")
	}
	return nil // it stays as it is
}

// make makes the entry h as name, in its directory, which becomes x.in.
func (x *extractor) make(h *tar.Header, name string, content io.Reader) error {
	if err := x.enter(path.Dir(name)); err != nil {
		return err
	}
	base := path.Base(name)
	switch h.Typeflag {
	case tar.TypeDir:
		made, err := mkdir(x.in, base)
		if err != nil || !made {
			return err
		}
		return x.later(h, name)
	case tar.TypeReg, tar.TypeGNUSparse:
		if err := x.fits(h.Size); err != nil {
			return err
		}
		return x.regular(h, base, content)
	case tar.TypeSymlink:
		return x.replace(base, func(part string) error {
			if err := x.in.Symlink(h.Linkname, part); err != nil {
				return err
			}
			return x.describe(h, part)
		})
	case tar.TypeLink:
		target, err := x.local(h, h.Linkname)
		if err != nil {
			return err
		}
		// Link takes both names from root.
		return x.replace(base, func(part string) error { return x.root.Link(target, path.Join(path.Dir(name), part)) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if !x.o.Devices {
			return refuse(h, "devices and pipes are not made here")
		}
		return x.replace(base, func(part string) error { return x.node(h, part) })
	}
	return refuse(h, "an entry of type %q", h.Typeflag)
}

// fits says whether there is room for a file. Small ones find out.
func (x *extractor) fits(size int64) error {
	if x.o.Room == nil || size <= copyBuffer {
		return nil
	}
	room, err := x.o.Room()
	if err == nil && size > room {
		err = fmt.Errorf("it has %d bytes: %w", size, syscall.ENOSPC)
	}
	return err
}

// enter makes dir, a path in root, the directory to work in; it is made where it is
// missing.
func (x *extractor) enter(dir string) error {
	if x.in != nil && x.dir == dir {
		return nil
	}
	if err := x.leave(); err != nil {
		return err
	}
	in := x.root
	if dir != "." {
		var err error
		in, err = x.root.OpenRoot(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if err = x.root.MkdirAll(dir, 0o777&^x.o.Umask); err == nil {
				in, err = x.root.OpenRoot(dir)
			}
		}
		if err != nil {
			return err
		}
	}
	x.dir, x.in, x.aliased = dir, in, dir == "."
	var err error
	x.inFile, err = in.Open(".")
	if err == nil {
		x.mask = linux.CreateMask(x.inFile)
	}
	return err
}

func (x *extractor) leave() error {
	var err error
	if x.inFile != nil {
		err = x.inFile.Close()
	}
	if x.in != nil && !x.aliased {
		err = errors.Join(err, x.in.Close())
	}
	x.in, x.inFile = nil, nil
	return err
}

func (x *extractor) close() error {
	err := x.leave()
	if x.tree != nil {
		err = errors.Join(err, x.tree.Close())
	}
	return err
}

// replace has a file made under another name and then gives it its own.
func (x *extractor) replace(name string, mk func(part string) error) error {
	x.parts++
	part := x.part + strconv.Itoa(x.parts)
	err := mk(part)
	if err == nil {
		err = x.in.Rename(part, name)
	}
	if err != nil {
		return errors.Join(err, ignoreAbsent(x.in.Remove(part)))
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mkdir makes a directory, or finds one.
func mkdir(in *os.Root, name string) (made bool, err error) {
	err = in.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err == nil, err
	}
	info, err := in.Stat(name)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "make directory", Path: name, Err: syscall.ENOTDIR}
	}
	return false, err
}

// later notes a directory that was made.
func (x *extractor) later(h *tar.Header, name string) error {
	x.pending += 256 + len(name) + len(h.Name)
	for key, value := range h.PAXRecords {
		x.pending += len(key) + len(value)
	}
	if x.pending > maxPending {
		return refuse(h, "it is one directory too many")
	}
	x.dirs = append(x.dirs, dirEntry{name, h})
	return nil
}

// finishDirs gives the directories that were made their modes and dates, those
// farther down first.
func (x *extractor) finishDirs() error {
	for _, d := range slices.Backward(x.dirs) {
		if err := x.finishDir(d); err != nil {
			return fmt.Errorf("extract %.300q: %w", d.h.Name, err)
		}
	}
	return nil
}

func (x *extractor) finishDir(d dirEntry) (err error) {
	f, err := x.root.OpenFile(d.name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if x.o.Owners {
		if err := f.Chown(d.h.Uid, d.h.Gid); err != nil {
			return err
		}
		if err := setXattrs(f, d.h); err != nil {
			return err
		}
	}
	if err := f.Chmod(x.mode(d.h)); err != nil {
		return err
	}
	return linux.SetModified(f, "", d.h.ModTime)
}
