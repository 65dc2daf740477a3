package vmm

import (
	"fmt"
	"os"
)

// Readable lets every user read a file, of whose directory only root knows.
func Readable(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	if info.Mode()&0o444 == 0o444 {
		return nil
	}
	return os.Chmod(path, info.Mode().Perm()|0o444)
}
