package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"banger/api"
)

const (
	maxComponent = 255   // NAME_MAX
	maxPath      = 4096  // PATH_MAX
	maxTarget    = 4095  // ext4 keeps a link's target in one block
	maxLinks     = 65000 // EXT4_LINK_MAX
	maxXattrName = 255   // XATTR_NAME_MAX
	xattrPrefix  = "SCHILY.xattr."
	maxMajor     = 1 << 12 // Linux dev_t
	maxMinor     = 1 << 20
	reportEvery  = 256 // entries
)

// lastDate is the last second that an ext4 of 32-bit dates knows.
var lastDate = time.Unix(math.MaxInt32, 0)

// filter copies a tar archive entry by entry, refusing what is not a plain root
// file system. Its errors are invalid and name the entry.
type filter struct {
	src        *source
	maxSize    int64
	maxEntries int64
	report     func(entries int64)

	size    int64
	entries int64
	last    string           // the entry under way
	seen    map[string]*node // by clean path; "." is the root
}

// node is what the filter remembers of an inode; hard links share one.
type node struct {
	dir     bool
	implied bool // a parent that had no entry so far
	links   int
}

func newFilter(src *source, maxSize, maxEntries int64, report func(int64)) *filter {
	return &filter{src: src, maxSize: maxSize, maxEntries: maxEntries, report: report,
		seen: map[string]*node{".": {dir: true, implied: true}, "lost+found": {dir: true, implied: true}}}
}

// badArchive makes what a decoder said an invalid; what is not the archive's
// doing, such as a cancelled context, stays what it is.
func badArchive(err error) error {
	if _, ok := errors.AsType[*api.Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errWriter) {
		return err
	}
	return api.Errorf(api.CodeInvalid, "archive is corrupt: %w", err)
}

func (f *filter) broken(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return api.Errorf(api.CodeInvalid, "archive is truncated after entry %q", f.last)
	case errors.Is(err, tar.ErrHeader) && f.entries == 0:
		return api.Errorf(api.CodeInvalid, "not a tar archive").WithHint("give a tar archive of a root file system, plain or compressed with gzip, zstd or xz")
	case errors.Is(err, tar.ErrHeader):
		return api.Errorf(api.CodeInvalid, "archive is corrupt after entry %q", f.last)
	}
	return badArchive(err)
}

// run copies the archive to w and reads the source to its end.
func (f *filter) run(w io.Writer) error {
	in, out := tar.NewReader(f.src), tar.NewWriter(w)
	buf := make([]byte, bufferSize)
	for {
		f.src.zeros = 0
		hdr, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return f.broken(err)
		}
		if err := f.entry(in, out, hdr, buf); err != nil {
			return err
		}
	}
	if f.entries == 0 {
		return api.Errorf(api.CodeInvalid, "archive is empty").WithHint("give a tar archive of a root file system")
	}
	if f.src.zeros < 512 { // POSIX pax: the archive ends with blocks of zeros
		return f.broken(io.ErrUnexpectedEOF)
	}
	if err := out.Close(); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(io.Discard, onlyReader{f.src}, buf); err != nil {
		return f.broken(err)
	}
	f.report(f.entries)
	return nil
}

type onlyReader struct{ io.Reader }

func (f *filter) entry(in *tar.Reader, out *tar.Writer, hdr *tar.Header, buf []byte) error {
	if f.entries++; f.entries > f.maxEntries {
		return api.Errorf(api.CodeInvalid, "entry %q: archive has more than %d entries", hdr.Name, f.maxEntries)
	}
	if f.entries%reportEvery == 1 {
		f.report(f.entries)
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader { // e.g. the comment of git archive
		return nil
	}
	clean, err := f.check(hdr)
	if err != nil {
		return err
	}
	f.last = hdr.Name
	if f.size += clean.Size; clean.Size < 0 || f.size > f.maxSize {
		return api.Errorf(api.CodeInvalid, "entry %q: archive has more than %d bytes of content", hdr.Name, f.maxSize)
	}
	if err := out.WriteHeader(clean); err != nil {
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
			return api.Errorf(api.CodeInvalid, "entry %q: %w", hdr.Name, err)
		}
		return err
	}
	if clean.Size == 0 {
		return nil
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, onlyReader{in}, buf); err != nil {
		return f.broken(err)
	}
	return nil
}

// check returns the header that goes into the file system.
func (f *filter) check(hdr *tar.Header) (*tar.Header, error) {
	refuse := func(reason string) (*tar.Header, error) {
		return nil, api.Errorf(api.CodeInvalid, "entry %q: %s", hdr.Name, reason)
	}
	name, reason := cleanPath(hdr.Name)
	if reason != "" {
		return refuse(reason)
	}
	clean := &tar.Header{
		Format: tar.FormatPAX, Typeflag: hdr.Typeflag, Name: name, Mode: hdr.Mode & 0o7777, Uid: hdr.Uid, Gid: hdr.Gid,
		ModTime: clamp(hdr.ModTime), AccessTime: clamp(hdr.AccessTime), ChangeTime: clamp(hdr.ChangeTime), PAXRecords: map[string]string{},
	}
	if hdr.Uid < 0 || hdr.Uid > math.MaxUint32 || hdr.Gid < 0 || hdr.Gid > math.MaxUint32 {
		return refuse("owner is out of range")
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		clean.Typeflag, clean.Size = tar.TypeReg, hdr.Size
	case tar.TypeDir:
		clean.Name += "/"
	case tar.TypeFifo:
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > maxTarget || strings.ContainsRune(hdr.Linkname, 0) {
			return refuse("target of the symbolic link is empty, too long or has a NUL")
		}
		clean.Linkname = hdr.Linkname
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devmajor >= maxMajor || hdr.Devminor < 0 || hdr.Devminor >= maxMinor {
			return refuse("device number is out of range")
		}
		if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
			return refuse("character device 0:0, the mark of a deleted file of an overlay")
		}
		clean.Devmajor, clean.Devminor = hdr.Devmajor, hdr.Devminor
	case tar.TypeLink:
		return f.hardLink(hdr, clean, name)
	default:
		return nil, api.Errorf(api.CodeInvalid, "entry %q: unsupported type %q", hdr.Name, hdr.Typeflag)
	}
	if reason := copyXattrs(clean.PAXRecords, hdr.PAXRecords); reason != "" {
		return refuse(reason)
	}
	if reason := f.place(name, &node{dir: hdr.Typeflag == tar.TypeDir, links: 1}); reason != "" {
		return refuse(reason)
	}
	return clean, nil
}

func (f *filter) hardLink(hdr, clean *tar.Header, name string) (*tar.Header, error) {
	refuse := func(reason string) (*tar.Header, error) {
		return nil, api.Errorf(api.CodeInvalid, "entry %q: hard link to %q: %s", hdr.Name, hdr.Linkname, reason)
	}
	if len(hdr.Linkname) > maxTarget {
		return nil, api.Errorf(api.CodeInvalid, "entry %q: target of the hard link is too long", hdr.Name)
	}
	target, reason := cleanPath(hdr.Linkname)
	if reason != "" {
		return refuse(reason)
	}
	n, ok := f.seen[target]
	switch {
	case !ok:
		return refuse("no such entry before it in the archive")
	case n.dir:
		return refuse("a directory")
	case n.links >= maxLinks:
		return refuse("too many links")
	}
	if reason := f.place(name, n); reason != "" {
		return refuse(reason)
	}
	n.links++
	clean.Linkname = target
	return clean, nil
}

// place records an entry and the parents that it implies. Only a directory may
// come twice: the writer gives the later entry's owner and mode to it, but cannot
// take back the blocks of a file.
func (f *filter) place(name string, n *node) (reason string) {
	if old, ok := f.seen[name]; ok {
		switch {
		case !old.dir || !n.dir:
			return "it is in the archive twice"
		default:
			old.implied = false
			return ""
		}
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		parent, ok := f.seen[dir]
		if ok && !parent.dir {
			return "it is below " + dir + ", which is not a directory"
		}
		if ok {
			break
		}
		f.seen[dir] = &node{dir: true, implied: true}
	}
	f.seen[name] = n
	return ""
}

// cleanPath takes "./" and a final "/" off a name. It refuses rather than
// resolves what leads elsewhere.
func cleanPath(name string) (clean, reason string) {
	switch {
	case name == "":
		return "", "empty name"
	case len(name) > maxPath:
		return "", "path is longer than 4096 bytes"
	case strings.ContainsRune(name, 0):
		return "", "name has a NUL"
	case path.IsAbs(name):
		return "", "absolute path"
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return "", `path has a component ".."`
		}
		if len(c) > maxComponent {
			return "", "a component of the path is longer than 255 bytes"
		}
	}
	return path.Clean(name), ""
}

// clamp keeps a date within what the writer gets right, 1970 to 2038.
func clamp(t time.Time) time.Time {
	switch {
	case t.IsZero():
		return t
	case t.Unix() < 0:
		return time.Unix(0, 0)
	case t.After(lastDate):
		return lastDate
	}
	return t
}

// copyXattrs keeps user.* and security.*. POSIX ACLs are dropped, for the writer
// would store them in the form of the system call, which is not that of the disk;
// what steers an overlay is refused.
func copyXattrs(to, from map[string]string) (reason string) {
	for key, value := range from {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		switch {
		case !ok || name == "system.posix_acl_access" || name == "system.posix_acl_default":
			continue
		case len(name) > maxXattrName || strings.ContainsRune(name, 0) || name == "user." || name == "security.":
			return "an extended attribute has a bad name"
		case strings.HasPrefix(name, "user.overlay."), !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security."):
			return "extended attribute " + name + " is not allowed"
		}
		to[key] = value
	}
	return ""
}
