package image

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"banger/api"
	"banger/internal/intake"
)

const (
	maxMajor    = 1 << 12 // Linux dev_t
	maxMinor    = 1 << 20
	reportEvery = 256 // entries
)

// lastDate is the last second that an ext4 of 32-bit dates knows.
var lastDate = time.Unix(math.MaxInt32, 0)

// filter copies a tar archive entry by entry, so that the file system is what tar -x
// makes as root, and refuses what cannot be. Its errors are invalid and name the entry.
type filter struct {
	src        *source
	maxSize    int64
	maxEntries int64
	report     func(entries int64)
	large      func() error // called once, when the tree is no small one any more

	size    int64
	entries int64  // of the archive, and directories that it implies
	ordinal int64  // of the entry that comes next in the archive
	last    string // the entry under way
	tree    *tree
	stack   *stack // of a layer of an OCI image; nil for an archive that stands alone
}

func newFilter(src *source, maxSize, maxEntries int64, report func(int64)) *filter {
	return &filter{src: src, maxSize: maxSize, maxEntries: maxEntries, report: report, tree: newTree()}
}

// broken says what the archive's decoder, or that of its compression, ran into. What
// is not the archive's doing, such as a cancelled context, stays what it is.
func (f *filter) broken(err error) error {
	notTar := api.Errorf(api.CodeInvalid, "not a tar archive").
		WithHint("give a tar archive of a root file system, plain or compressed with gzip, zstd or xz")
	if known, ok := errors.AsType[*api.Error](err); ok {
		return known
	}
	switch {
	case f.src.raw.err != nil && !errors.Is(f.src.raw.err, io.ErrUnexpectedEOF):
		return f.src.raw.err
	case f.src.format == intake.Plain && f.src.read < 512: // POSIX pax: blocks of 512 bytes
		return notTar
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return api.Errorf(api.CodeInvalid, "archive is truncated%s", f.after()).WithHint("get the archive again, all of it")
	case errors.Is(err, tar.ErrHeader) && f.entries == 0:
		return notTar
	}
	return api.Errorf(api.CodeInvalid, "archive is corrupt%s: %w", f.after(), err).WithHint("get the archive again")
}

// limited is the hint for an archive that exceeds a key of the configuration.
const limited = "image.%s in the configuration is the limit"

func (f *filter) after() string {
	if f.entries == 0 {
		return ""
	}
	return fmt.Sprintf(" after entry %s", quote(f.last))
}

// run copies the archive to w and reads the source to its end.
func (f *filter) run(w io.Writer) error {
	in, out := tar.NewReader(f.src), tar.NewWriter(w)
	buf := make([]byte, bufferSize)
	if err := f.begin(out); err != nil {
		return err
	}
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
	if f.entries == 0 && f.stack == nil {
		return api.Errorf(api.CodeInvalid, "archive is empty").WithHint("give a tar archive of a root file system")
	}
	if f.src.zeros < 512 { // POSIX pax: the archive ends with blocks of zeros
		return f.broken(io.ErrUnexpectedEOF)
	}
	if err := f.end(out, buf); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	behind := f.src.read - f.src.zeros
	if _, err := io.CopyBuffer(io.Discard, onlyReader{f.src}, buf); err != nil {
		return f.broken(err)
	}
	if f.src.read-f.src.zeros != behind {
		return api.Errorf(api.CodeInvalid, "archive goes on behind its end%s", f.after()).
			WithHint("archives that were put together with cat are to be imported one by one")
	}
	f.report(f.entries)
	if f.stack.isStale() {
		return errAgain
	}
	return nil
}

type onlyReader struct{ io.Reader }

func (f *filter) entry(in *tar.Reader, out *tar.Writer, hdr *tar.Header, buf []byte) error {
	f.last = hdr.Name
	ordinal := f.ordinal
	f.ordinal++
	if err := f.count(); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader { // e.g. the comment of git archive
		return nil
	}
	if done, err := f.stack.take(f, hdr, ordinal); done || err != nil {
		return err
	}
	clean, parents, err := f.check(hdr, ordinal)
	if err != nil {
		return invalid(hdr.Name, err)
	}
	if err := f.grown(); err != nil || clean == nil || f.stack.isStale() {
		return err
	}
	if err := f.imply(out, parents, clean.ModTime); err != nil {
		return err
	}
	return f.copy(out, clean, in, buf)
}

// grown asks for the memory of a tree that is no small one any more.
func (f *filter) grown() error {
	if f.tree.memory <= smallTree || f.large == nil {
		return nil
	}
	large := f.large
	f.large = nil
	return large()
}

// copy puts an entry, with its content, into the file system.
func (f *filter) copy(out *tar.Writer, clean *tar.Header, content io.Reader, buf []byte) error {
	if f.size += clean.Size; clean.Size < 0 || f.size > f.maxSize {
		return api.Errorf(api.CodeInvalid, "entry %s: archive has more than %d bytes of content", quote(f.last), f.maxSize).
			WithHint(limited, "max_size")
	}
	if err := out.WriteHeader(clean); err != nil {
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
			return invalid(f.last, err)
		}
		return err
	}
	if clean.Size == 0 {
		return nil
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{out}, onlyReader{content}, buf)
	if err != nil && !errors.Is(err, errWriter) {
		return f.broken(err)
	}
	return err
}

// imply makes directories that the archive does not contain, as tar -x does; the
// writer would copy their parent's mode.
func (f *filter) imply(out *tar.Writer, parents []implied, date time.Time) error {
	for _, dir := range parents {
		if err := f.count(); err != nil {
			return err
		}
		m := dir.meta
		if m == nil {
			m = &meta{mode: 0o755, date: date}
		}
		if err := out.WriteHeader(m.header(dir.path)); err != nil {
			return err
		}
	}
	return nil
}

// header is that of a directory.
func (m *meta) header(path string) *tar.Header {
	return &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeDir, Name: path + "/", Mode: m.mode, Uid: m.uid, Gid: m.gid,
		ModTime: m.date, AccessTime: m.date, ChangeTime: m.date, PAXRecords: m.xattrs}
}

func (f *filter) count() error {
	if f.entries++; f.entries > f.maxEntries {
		return api.Errorf(api.CodeInvalid, "entry %s: archive has more than %d entries", quote(f.last), f.maxEntries).
			WithHint(limited, "max_entries")
	}
	if f.entries%reportEvery == 1 {
		f.report(f.entries)
	}
	return nil
}

// check returns the header that goes into the file system, nil where nothing does, and
// the directories that the entry implies.
func (f *filter) check(hdr *tar.Header, ordinal int64) (clean *tar.Header, parents []implied, err error) {
	name, err := cleanPath(hdr.Name)
	if err != nil {
		return nil, nil, err
	}
	at, err := f.tree.find(name)
	if err != nil {
		return nil, nil, err
	}
	if hdr.Typeflag == tar.TypeLink {
		return f.hardLink(hdr, at, ordinal)
	}
	clean, n, err := cleaned(hdr, at.name())
	if err != nil {
		return nil, nil, err
	}
	n.layer, n.entry = f.stack.depth(), ordinal
	// The writer keeps the path, as a part of the header if that is a long one.
	kept := len(n.target) + len(clean.Name)
	for key, value := range clean.PAXRecords {
		kept += 2 * (len(key) + len(value))
	}
	if err := f.tree.take(kept); err != nil {
		return nil, nil, err
	}
	if at.node != nil {
		replaced, err := f.again(&at, n, ordinal)
		if err != nil || !replaced {
			return clean, nil, err
		}
	}
	parents, err = f.tree.put(at, n)
	return clean, parents, err
}

// cleaned is the header of an entry, hard links excepted, with nothing in it that
// does not go into the file system, and what is remembered of it.
func cleaned(hdr *tar.Header, name string) (clean *tar.Header, n *node, err error) {
	if hdr.Uid < 0 || hdr.Uid > math.MaxUint32 || hdr.Gid < 0 || hdr.Gid > math.MaxUint32 {
		return nil, nil, errors.New("owner is out of range")
	}
	clean = &tar.Header{
		Format: tar.FormatPAX, Typeflag: hdr.Typeflag, Name: name, Mode: hdr.Mode & 0o7777, Uid: hdr.Uid, Gid: hdr.Gid,
		ModTime: clamp(hdr.ModTime), PAXRecords: map[string]string{},
	}
	clean.AccessTime, clean.ChangeTime = clean.ModTime, clean.ModTime
	n = &node{links: 1}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		clean.Typeflag, clean.Size = tar.TypeReg, hdr.Size
	case tar.TypeDir:
		clean.Name, n = clean.Name+"/", newDir()
	case tar.TypeFifo:
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > maxTarget || strings.ContainsRune(hdr.Linkname, 0) {
			return nil, nil, errors.New("target of the symbolic link is empty, too long or has a NUL")
		}
		clean.Linkname, n.target = hdr.Linkname, strings.Clone(hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		if err := checkDevice(hdr); err != nil {
			return nil, nil, err
		}
		clean.Devmajor, clean.Devminor = hdr.Devmajor, hdr.Devminor
	default:
		return nil, nil, fmt.Errorf("unsupported type %q", hdr.Typeflag)
	}
	if n.attrs, err = copyXattrs(clean.PAXRecords, hdr.PAXRecords); err != nil {
		return nil, nil, err
	}
	if n.isDir() {
		n.meta = &meta{clean.Mode, clean.Uid, clean.Gid, clean.ModTime, clean.PAXRecords}
	}
	return clean, n, nil
}

func checkDevice(hdr *tar.Header) error {
	switch {
	case hdr.Devmajor < 0 || hdr.Devmajor >= maxMajor || hdr.Devminor < 0 || hdr.Devminor >= maxMinor:
		return errors.New("device number is out of range")
	case hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0:
		return errors.New("character device 0:0, the mark of a deleted file of an overlay")
	}
	return nil
}

var errTwice = errors.New("it is in the archive twice")

// again is an entry of a path that the archive had before. A directory may come twice:
// it takes the later one's owner, mode, date and attributes, as with tar -x. Of a file
// the later one holds, but the writer, which sees the archive once, cannot take the
// blocks of the earlier one back: it is replaced in a second pass over the archive,
// where there can be one.
func (f *filter) again(at *place, n *node, ordinal int64) (replaced bool, err error) {
	old := at.node
	switch {
	case old.isDir() && n.isDir() && old.attrs > inodeXattrs: // the writer forgets those that have a block
		return false, errors.New("a directory of many extended attributes is in the archive twice")
	case old.isDir() && n.isDir():
		old.attrs += n.attrs
		if old.meta != nil {
			for key, value := range old.meta.xattrs {
				if _, ok := n.meta.xattrs[key]; !ok {
					n.meta.xattrs[key] = value
				}
			}
		}
		old.meta = n.meta
		f.stack.sawAgain(old, ordinal)
		return false, nil
	}
	return true, f.stack.supersede(at)
}

func (f *filter) hardLink(hdr *tar.Header, at place, ordinal int64) (clean *tar.Header, parents []implied, err error) {
	bad := func(reason string) (*tar.Header, []implied, error) {
		return nil, nil, fmt.Errorf("hard link to %s: %s", quote(hdr.Linkname), reason)
	}
	if len(hdr.Linkname) > maxTarget {
		return nil, nil, errors.New("target of the hard link is too long")
	}
	target, err := cleanPath(hdr.Linkname)
	if err != nil {
		return bad(err.Error())
	}
	to, err := f.tree.find(target)
	n := to.node
	switch {
	case err != nil:
		return bad(err.Error())
	case n == nil && to.below == nil:
		return bad("no such entry before it in the archive")
	case cmp.Or(n, to.below).isDir():
		return bad("a directory")
	case n != nil && n.links >= maxLinks:
		return bad("too many links")
	case n == nil:
		n = f.stack.below(to.below)
	}
	if at.node != nil {
		if at.node == n && f.stack != nil {
			return nil, nil, nil
		}
		if err := f.stack.supersede(&at); err != nil {
			return nil, nil, err
		}
	}
	if parents, err = f.tree.put(at, n); err != nil {
		return nil, nil, err
	}
	n.links++
	if err := f.tree.take(len(at.name())); err != nil {
		return nil, nil, err
	}
	clean = &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeLink, Name: at.name(), Linkname: to.name(), ModTime: clamp(hdr.ModTime)}
	if n.copied {
		f.stack.later(n, clean, parents, ordinal)
		return nil, nil, nil
	}
	return clean, parents, nil
}

// clamp keeps a date within what the writer gets right, 1970 to 2038.
func clamp(t time.Time) time.Time {
	switch {
	case t.Unix() < 0: // also the zero time
		return time.Unix(0, 0)
	case t.After(lastDate):
		return lastDate
	}
	return t
}
