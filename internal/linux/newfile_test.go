package linux

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file gets the mode that it is to have, whatever umask and directory say.
func TestNewFileMode(t *testing.T) {
	plain, withACL := t.TempDir(), t.TempDir()
	// Version 2 and three entries of tag, permissions and id: rwx for the owner, nothing
	// for group and others (linux/posix_acl_xattr.h).
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, entry := range [][2]uint16{{0x01, 7}, {0x04, 0}, {0x20, 0}} {
		acl = binary.LittleEndian.AppendUint16(acl, entry[0])
		acl = binary.LittleEndian.AppendUint16(acl, entry[1])
		acl = binary.LittleEndian.AppendUint32(acl, 0xffffffff)
	}
	if err := unix.Setxattr(withACL, "system.posix_acl_default", acl, 0); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{plain, withACL} {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		mask := CreateMask(f)
		if dir == plain && mask == 0o777 {
			t.Errorf("the umask is not known")
		}
		for _, mode := range []uint32{0, 0o400, 0o600, 0o644, 0o755, 0o666, 0o777, 0o4755, 0o1644} {
			n := NewFile{Mode: mode, Mask: mask, Content: []byte("x"), Modified: time.Unix(1, 0)}
			name := fmt.Sprintf("%o", mode)
			if err := n.Make(f, name); err != nil {
				t.Fatal(err)
			}
			var stat unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, name), &stat); err != nil || stat.Mode&0o7777 != mode || stat.Mtim.Sec != 1 {
				t.Errorf("%s in %s: mode %o, of %d (%v)", name, dir, stat.Mode, stat.Mtim.Sec, err)
			}
			if err := n.Make(f, name); err == nil {
				t.Errorf("%s is made once more: %v", name, fs.ErrExist)
			}
		}
	}
}
