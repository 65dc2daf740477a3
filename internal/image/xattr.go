package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// What the writer has for extended attributes: the rest of an inode, and a block.
const (
	maxXattrName = 255 // XATTR_NAME_MAX
	inodeXattrs  = 256 - 152 - 8
	blockXattrs  = 4096 - 36
	xattrPrefix  = "SCHILY.xattr."
)

// copyXattrs keeps user.* and security.*, and returns the bytes that they take. POSIX
// ACLs are dropped, for the writer would store them in the form of the system call,
// which is not that of the disk; what steers an overlay is refused.
func copyXattrs(to, from map[string]string) (taken int, err error) {
	inode, block := inodeXattrs, blockXattrs
	for _, key := range slices.Sorted(maps.Keys(from)) {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		switch {
		case !ok || name == "system.posix_acl_access" || name == "system.posix_acl_default":
			continue
		case len(name) > maxXattrName || strings.ContainsRune(name, 0) || name == "user." || name == "security.":
			return 0, errors.New("an extended attribute has a bad name")
		case strings.HasPrefix(name, "user.overlay."), !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security."):
			return 0, fmt.Errorf("extended attribute %s is not allowed", quote(name))
		}
		_, rest, _ := strings.Cut(name, ".") // the prefix is a number on the disk
		size := (len(rest)+3)&^3 + 16 + (len(from[key])+3)&^3
		switch {
		case size <= inode:
			inode -= size
		case size <= block:
			block -= size
		default:
			return 0, fmt.Errorf("extended attribute %s: the attributes of a file have no more than %d bytes", quote(name), blockXattrs)
		}
		taken += size
		to[strings.Clone(key)] = strings.Clone(from[key]) // which would keep the whole header
	}
	return taken, nil
}
