package image

import (
	"os"
	"path/filepath"
)

// Arrived is how much is here of a blob that arrives.
func (m *Manager) Arrived(blob string) int64 {
	found, _ := filepath.Glob(m.path("layers/*", archiveFile))
	for _, file := range found {
		p, ok := m.readPartial("layers/" + filepath.Base(filepath.Dir(file)))
		if info, err := os.Stat(file); err == nil && ok && p.Blob == blob {
			return info.Size()
		}
	}
	return 0
}

// Mounted mounts the disks of an image, for the test.
var Mounted = mounted
