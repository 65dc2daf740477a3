// Package archive copies trees of files as tar archives. Both ends of a copy use
// it: the command line on the host, as the user, and the agent in the guest. What
// Extract reads may come from a hostile guest: nothing in it leads out of the
// directory that it is extracted to.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/linux"
)

// xattrPrefix is how a tar archive names the extended attributes of an entry.
const xattrPrefix = "SCHILY.xattr."

// WriteOptions say what Write writes.
type WriteOptions struct {
	Name          string // what the tree is called in the archive; empty for "." if it is a directory, else its own name
	Follow        bool   // where the path names a symbolic link, take what it leads to
	OneFileSystem bool   // leave out what is in other file systems, as tar(1) does
	Xattrs        bool
	Layer         bool // the tree is an overlay's upper directory: write it as a layer of an OCI image

	// Skip says of what is below the tree, by its path relative to it, whether to leave
	// it out, a directory with all that is in it. It may be nil.
	Skip func(name string, directory bool) (bool, error)
}

// Write writes the file or tree at path to w as a tar archive, with modes, owners
// by number, dates in seconds, symbolic and hard links, devices. Sockets are left
// out. A file that becomes shorter meanwhile is an error. What was written before an
// error ends in the middle of an entry, so that nobody takes it for the whole.
func Write(w io.Writer, path string, o WriteOptions) error {
	info, err := Stat(path, o.Follow)
	if err != nil {
		return err
	}
	if o.Follow {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return fmt.Errorf("archive %s: a socket cannot be copied: %w", path, syscall.ENOTSUP)
	}
	if o.Name == "" {
		o.Name = filepath.Base(path)
		if info.IsDir() {
			o.Name = "."
		}
	}
	t := &writer{tar: tar.NewWriter(w), o: o, top: path, links: map[inode]string{}, device: inodeOf(info).device, buf: make([]byte, copyBuffer)}
	if err := t.add(path, o.Name, info); err != nil {
		t.cut(w)
		return err
	}
	return t.tar.Close()
}

// cut ends an archive that is not whole, if there is one already.
func (t *writer) cut(w io.Writer) {
	if t.entries > 0 && t.tar.Flush() == nil { // else an entry is not whole as it is
		_, _ = io.WriteString(w, "cut off")
	}
}

// Stat is os.Stat or os.Lstat.
func Stat(path string, follow bool) (fs.FileInfo, error) {
	if follow {
		return os.Stat(path)
	}
	return os.Lstat(path)
}

type inode struct{ device, number uint64 }

func inodeOf(info fs.FileInfo) inode {
	s := info.Sys().(*syscall.Stat_t) // on Linux always
	return inode{s.Dev, s.Ino}
}

type writer struct {
	tar    *tar.Writer
	o      WriteOptions
	top    string
	links  map[inode]string // the first name of each file that has several
	device uint64
	buf    []byte

	entries int
}

func (t *writer) add(file, name string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	if t.o.Layer && name != "." {
		if done, err := t.whiteout(file, name, info); done || err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(nameless{info}, target)
	if err != nil {
		return fmt.Errorf("archive %s: %w", file, err)
	}
	h.Name, h.ModTime = name, modified(info.ModTime())
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if info.IsDir() {
		h.Name += "/"
	}
	id := inodeOf(info)
	if info.Mode().IsRegular() && info.Sys().(*syscall.Stat_t).Nlink > 1 {
		if first, ok := t.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			t.links[id] = name
		}
	}
	if t.o.Xattrs && h.Typeflag != tar.TypeLink {
		if h.PAXRecords, err = xattrs(file); err != nil {
			return err
		}
	}
	opaque := false
	if t.o.Layer && h.PAXRecords != nil {
		if opaque, err = ownXattrs(h.PAXRecords); err != nil {
			return fmt.Errorf("archive %s: %w", file, err)
		}
	}
	if h.Typeflag == tar.TypeReg {
		return t.regular(h, file)
	}
	if err := t.header(h); err != nil {
		return fmt.Errorf("archive %s: %w", file, err)
	}
	if opaque {
		if err := t.header(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, whiteoutOpaque), Mode: 0o600}); err != nil {
			return err
		}
	}
	if info.IsDir() && !(t.o.OneFileSystem && id.device != t.device) {
		return t.addAll(file, name)
	}
	return nil
}

func (t *writer) header(h *tar.Header) error {
	t.entries++
	if len(h.PAXRecords) == 0 && !t.o.Layer {
		h.Format = tar.FormatGNU // which has names of any bytes, and is read faster
	}
	return t.tar.WriteHeader(h)
}

func xattrs(file string) (map[string]string, error) {
	all, err := linux.Xattrs(file)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	records := make(map[string]string, len(all))
	for name, value := range all {
		records[xattrPrefix+name] = value
	}
	return records, nil
}

// addAll adds what is in a directory. What has gone since it was listed is left out.
func (t *writer) addAll(dir, name string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		info, err := os.Lstat(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		skip, err := t.skip(file, info)
		if err != nil {
			return err
		}
		if skip {
			continue
		}
		if err := t.add(file, path.Join(name, e.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

func (t *writer) skip(file string, info fs.FileInfo) (bool, error) {
	if t.o.Skip == nil {
		return false, nil
	}
	below, err := filepath.Rel(t.top, file)
	if err != nil {
		return false, err
	}
	return t.o.Skip(below, info.IsDir())
}

// errChanged is in the chain of the errors for files that changed under the reader.
var errChanged = errors.New("it became shorter while it was read")

// regular adds a file. It has been looked at before; what is there now must be a
// file too, and not a link to one.
func (t *writer) regular(h *tar.Header, file string) error {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var first []byte
	if h.Size == 0 { // files of /proc say that, and have content
		n, err := io.ReadFull(f, t.buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		first, h.Size = t.buf[:n], int64(n)
	}
	if err := t.header(h); err != nil {
		return fmt.Errorf("archive %s: %w", file, err)
	}
	if len(first) > 0 {
		_, err := t.tar.Write(first)
		return err
	}
	for left := h.Size; left > 0; {
		n, err := f.Read(t.buf[:min(left, int64(len(t.buf)))])
		if err == io.EOF {
			return fmt.Errorf("archive %s: %w", file, errChanged)
		}
		if err != nil {
			return err
		}
		if _, err := t.tar.Write(t.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// nameless keeps tar from looking the names of owners up.
type nameless struct{ fs.FileInfo }

func (nameless) Uname() (string, error) { return "", nil }
func (nameless) Gname() (string, error) { return "", nil }
