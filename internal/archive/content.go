package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/linux"
)

// mode is the mode that an entry gets.
func (x *extractor) mode(h *tar.Header) fs.FileMode {
	mode := h.FileInfo().Mode()
	if x.o.Owners {
		return mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	return mode & fs.ModePerm &^ x.o.Umask
}

// regular makes a file.
func (x *extractor) regular(h *tar.Header, base string, content io.Reader) error {
	if h.Size > int64(len(x.buf)) || x.o.Owners && slices.ContainsFunc(slices.Collect(maps.Keys(h.PAXRecords)), isXattr) {
		return x.replace(base, func(part string) error { return x.file(h, part, content) })
	}
	small := linux.NewFile{Mode: Mode(x.mode(h)), Mask: x.mask, Owned: x.o.Owners, Owner: h.Uid, Group: h.Gid, Content: x.buf[:h.Size], Modified: h.ModTime}
	if _, err := io.ReadFull(content, small.Content); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if x.o.Quick {
		if err := small.Make(x.inFile, base); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return x.replace(base, func(part string) error { return small.Make(x.inFile, part) })
}

func isXattr(record string) bool { return strings.HasPrefix(record, xattrPrefix) }

func (x *extractor) file(h *tar.Header, part string, content io.Reader) (err error) {
	f, err := x.in.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := x.fill(f, h, content); err != nil {
		return err
	}
	if x.o.Owners {
		if err := f.Chown(h.Uid, h.Gid); err != nil { // before the mode: it clears setuid
			return err
		}
		if err := setXattrs(f, h); err != nil {
			return err
		}
	}
	if err := f.Chmod(x.mode(h)); err != nil {
		return err
	}
	return linux.SetModified(x.inFile, part, h.ModTime)
}

// fill writes the content of a file. Holes of a sparse one become holes.
func (x *extractor) fill(f *os.File, h *tar.Header, content io.Reader) error {
	sparse := h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != ""
	for left := h.Size; left > 0; {
		chunk := x.buf[:min(left, int64(len(x.buf)))]
		if _, err := io.ReadFull(content, chunk); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		left -= int64(len(chunk))
		if sparse && zero(chunk) {
			if _, err := f.Seek(int64(len(chunk)), io.SeekCurrent); err != nil {
				return err
			}
			continue
		}
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	if sparse {
		return f.Truncate(h.Size)
	}
	return nil
}

func zero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if string(b[:n]) != string(zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

var zeros [4 << 10]byte

func setXattrs(f *os.File, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		err := linux.SetXattr(f, name, value)
		if err != nil && !errors.Is(err, syscall.ENOTSUP) { // not every file system has them
			return err
		}
	}
	return nil
}

// describe gives a link or node the owner and the date that the archive names.
func (x *extractor) describe(h *tar.Header, part string) error {
	if x.o.Owners {
		if err := x.in.Lchown(part, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	return linux.SetModified(x.inFile, part, h.ModTime)
}

func (x *extractor) node(h *tar.Header, part string) error {
	kind := map[byte]fs.FileMode{tar.TypeChar: fs.ModeDevice | fs.ModeCharDevice, tar.TypeBlock: fs.ModeDevice, tar.TypeFifo: fs.ModeNamedPipe}
	if err := linux.MakeNode(x.inFile, part, kind[h.Typeflag], uint32(h.Devmajor), uint32(h.Devminor)); err != nil {
		return err
	}
	if err := x.describe(h, part); err != nil {
		return err
	}
	return x.in.Chmod(part, x.mode(h))
}

// Mode is a mode as chmod(2) has it.
func Mode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= syscall.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		bits |= syscall.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		bits |= syscall.S_ISVTX
	}
	return bits
}

// modified is a date as far as an archive keeps it.
func modified(t time.Time) time.Time { return t.Truncate(time.Second) }
