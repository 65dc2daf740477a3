package archive

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// How an overlay marks what it hides (Linux Documentation/filesystems/overlayfs.rst),
// and how a layer of an OCI image does (OCI Image Layer Filesystem Changeset,
// "Whiteouts").
const (
	overlayXattr   = xattrPrefix + "trusted.overlay."
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteout writes the mark of a file that an overlay hides, if this is one. The other
// way round, a file with the name of a mark cannot be written.
func (t *writer) whiteout(file, name string, info fs.FileInfo) (done bool, err error) {
	dir, base := path.Split(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return true, fmt.Errorf("archive %s: a layer of an image cannot have a file whose name begins with %s: %w", file, whiteoutPrefix, syscall.ENOTSUP)
	}
	if info.Mode()&fs.ModeCharDevice == 0 || info.Sys().(*syscall.Stat_t).Rdev != 0 { // on Linux always
		return false, nil
	}
	return true, t.header(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, Mode: 0o600})
}

// ownXattrs removes what the overlay has attached for itself. Opaque says that the
// directory hides what is below it.
func ownXattrs(records map[string]string) (opaque bool, err error) {
	for record, value := range records {
		name, ok := strings.CutPrefix(record, overlayXattr)
		if !ok {
			continue
		}
		delete(records, record)
		switch name {
		case "opaque":
			opaque = value == "y"
		case "redirect", "metacopy":
			return false, fmt.Errorf("the overlay has its content elsewhere (%s): %w", name, syscall.ENOTSUP)
		}
	}
	return opaque, nil
}
