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
	Name          string // what the tree is called in the archive; "." for what is in it
	Follow        bool   // where the path names a symbolic link, take what it leads to
	OneFileSystem bool   // leave out what is in other file systems, as tar(1) does
	Xattrs        bool
}

// Write writes the file or tree at path to w as a tar archive, with modes, owners
// by number, dates in seconds, symbolic and hard links, devices. Sockets are left
// out. A file that changes its size meanwhile is an error.
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
	t := &writer{tar: tar.NewWriter(w), o: o, links: map[inode]string{}, device: inodeOf(info).device}
	if err := t.add(path, o.Name, info); err != nil {
		return err
	}
	return t.tar.Close()
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
	links  map[inode]string // the first name of each file that has several
	device uint64
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
	h, err := tar.FileInfoHeader(nameless{info}, target)
	if err != nil {
		return fmt.Errorf("archive %s: %w", file, err)
	}
	h.Name, h.ModTime = name, info.ModTime().Truncate(time.Second)
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
	if err := t.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("archive %s: %w", file, err)
	}
	switch {
	case h.Typeflag == tar.TypeReg:
		return t.content(file, info.Size())
	case info.IsDir() && !(t.o.OneFileSystem && id.device != t.device):
		return t.addAll(file, name)
	}
	return nil
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
		if err := t.add(file, path.Join(name, e.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

func (t *writer) content(file string, size int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(t.tar, io.LimitReader(f, size))
	if err == nil && n < size {
		err = errors.New("it became shorter while it was read")
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", file, err)
	}
	return nil
}

// nameless keeps tar from looking the names of owners up.
type nameless struct{ fs.FileInfo }

func (nameless) Uname() (string, error) { return "", nil }
func (nameless) Gname() (string, error) { return "", nil }
