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
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/linux"
)

// ErrEntry is in the chain of the errors for entries that are refused.
var ErrEntry = errors.New("refused")

// ExtractOptions say how Extract makes files.
type ExtractOptions struct {
	Top     string // the one name at the top that the archive may have; "." for any
	Owners  bool   // give files the owners, all mode bits and extended attributes that the archive names
	Devices bool   // make device nodes and pipes, which are refused otherwise
}

// Extract makes what the tar archive r holds in the directory root. A file is there
// under its name only when it is complete; one that is there already is replaced,
// a directory is kept and added to. Names that lead out of the directory, by
// themselves or through symbolic links, are refused. What was extracted before an
// error stays.
func Extract(root *os.Root, r io.Reader, o ExtractOptions) error {
	x := &extractor{root: root, o: o}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := x.entry(h, archive); err != nil {
			return err
		}
	}
	return x.finishDirs()
}

type extractor struct {
	root *os.Root
	o    ExtractOptions
	dirs []*tar.Header // whose modes and dates are set at the end
}

func refuse(h *tar.Header, format string, args ...any) error {
	return fmt.Errorf("archive entry %q is %w: %s", h.Name, ErrEntry, fmt.Sprintf(format, args...))
}

// local returns a name of an entry as a path below root.
func (x *extractor) local(h *tar.Header, name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0):
		return "", refuse(h, "%q leads out of the directory", name)
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", refuse(h, "%q has .. in it", name)
	case x.o.Top != "." && clean != x.o.Top && !strings.HasPrefix(clean, x.o.Top+"/"):
		return "", refuse(h, "%q is not in %q, which was asked for", name, x.o.Top)
	}
	return clean, nil
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	name, err := x.local(h, h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return refuse(h, "the directory itself is no file")
		}
		return nil // it is the caller's, as it is
	}
	if dir := path.Dir(name); dir != "." {
		if err := x.root.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("extract %q: %w", h.Name, err)
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = x.dir(h, name)
	case tar.TypeReg:
		err = x.replace(name, func(part string) error { return x.file(h, part, content) })
	case tar.TypeSymlink:
		err = x.replace(name, func(part string) error {
			return errors.Join(x.root.Symlink(h.Linkname, part), x.own(h, part))
		})
	case tar.TypeLink:
		var target string
		if target, err = x.local(h, h.Linkname); err == nil {
			err = x.replace(name, func(part string) error { return x.root.Link(target, part) })
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if !x.o.Devices {
			return refuse(h, "devices and pipes are not copied")
		}
		err = x.replace(name, func(part string) error { return x.node(h, part) })
	default:
		return refuse(h, "an entry of type %q", h.Typeflag)
	}
	if err != nil && !errors.Is(err, ErrEntry) {
		err = fmt.Errorf("extract %q: %w", h.Name, err)
	}
	return err
}

// replace has a file made under another name and then gives it its own.
func (x *extractor) replace(name string, mk func(part string) error) error {
	if info, err := x.root.Lstat(name); err == nil && info.IsDir() {
		return &fs.PathError{Op: "replace", Path: name, Err: syscall.EISDIR}
	}
	part := path.Join(path.Dir(name), ".banger-"+rand.Text())
	if err := mk(part); err != nil {
		return errors.Join(err, ignoreAbsent(x.root.Remove(part)))
	}
	if err := x.root.Rename(part, name); err != nil {
		return errors.Join(err, ignoreAbsent(x.root.Remove(part)))
	}
	// Where both names are links to one file, rename(2) leaves both.
	return ignoreAbsent(x.root.Remove(part))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (x *extractor) dir(h *tar.Header, name string) error {
	err := x.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, serr := x.root.Stat(name)
		if serr != nil {
			return serr
		}
		if !info.IsDir() {
			return &fs.PathError{Op: "make directory", Path: name, Err: syscall.ENOTDIR}
		}
		return nil // as it is
	}
	if err != nil {
		return err
	}
	own := *h
	own.Name = name
	x.dirs = append(x.dirs, &own)
	return nil
}

// mode is the mode that an entry gets.
func (x *extractor) mode(h *tar.Header) fs.FileMode {
	mode := h.FileInfo().Mode()
	if x.o.Owners {
		return mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	return mode & fs.ModePerm
}

func (x *extractor) file(h *tar.Header, part string, content io.Reader) (err error) {
	f, err := x.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if x.o.Owners {
		if err := f.Chown(h.Uid, h.Gid); err != nil { // before the mode: it clears setuid
			return err
		}
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, xattrPrefix); ok {
				if err := linux.SetXattr(f, name, value); err != nil {
					return err
				}
			}
		}
	}
	if err := f.Chmod(x.mode(h)); err != nil {
		return err
	}
	return x.root.Chtimes(part, time.Time{}, h.ModTime)
}

// own sets the owner of a symbolic link.
func (x *extractor) own(h *tar.Header, name string) error {
	if !x.o.Owners {
		return nil
	}
	return x.root.Lchown(name, h.Uid, h.Gid)
}

func (x *extractor) node(h *tar.Header, part string) error {
	dir, err := x.root.Open(path.Dir(part))
	if err != nil {
		return err
	}
	defer dir.Close()
	kind := map[byte]fs.FileMode{tar.TypeChar: fs.ModeDevice | fs.ModeCharDevice, tar.TypeBlock: fs.ModeDevice, tar.TypeFifo: fs.ModeNamedPipe}
	if err := linux.MakeNode(dir, path.Base(part), kind[h.Typeflag], uint32(h.Devmajor), uint32(h.Devminor)); err != nil {
		return err
	}
	if err := x.own(h, part); err != nil {
		return err
	}
	return errors.Join(x.root.Chmod(part, x.mode(h)), x.root.Chtimes(part, time.Time{}, h.ModTime))
}

// finishDirs gives the directories that were made their modes and dates, which
// what was put into them would have changed or forbidden.
func (x *extractor) finishDirs() error {
	for _, h := range slices.Backward(x.dirs) {
		info, err := x.root.Lstat(h.Name)
		if err != nil || !info.IsDir() {
			continue // a later entry replaced it
		}
		if x.o.Owners {
			if err := x.root.Lchown(h.Name, h.Uid, h.Gid); err != nil {
				return err
			}
		}
		if err := errors.Join(x.root.Chmod(h.Name, x.mode(h)), x.root.Chtimes(h.Name, time.Time{}, h.ModTime)); err != nil {
			return err
		}
	}
	return nil
}
