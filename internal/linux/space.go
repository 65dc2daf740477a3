package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// FileSystem is how full a file system is, in bytes.
type FileSystem struct {
	Size      int64
	Available int64 // without what is kept back for root
}

// FileSystemOf looks at the file system that path is on; statfs(2).
func FileSystemOf(path string) (FileSystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return FileSystem{}, fmt.Errorf("look at the file system of %s: %w", path, err)
	}
	return FileSystem{Size: int64(st.Blocks) * st.Frsize, Available: int64(st.Bavail) * st.Frsize}, nil
}
