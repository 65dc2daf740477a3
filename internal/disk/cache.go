package disk

import (
	"context"
	"path/filepath"

	"banger/internal/space"
)

// overheadShare and overheadLeast estimate what an empty file system takes.
const (
	overheadShare = 4096
	overheadLeast = 8 << 20
)

// Overhead returns about how many bytes an empty disk of a size, or the growth of one
// by that size, takes at once; the rest is taken as it is written.
func Overhead(size int64) int64 {
	if size == 0 {
		return 0
	}
	return overheadLeast + size/overheadShare
}

// Cache returns the empty file systems that are kept to be copied. They are made
// again when they are needed.
func (d *Disks) Cache() ([]space.Item, error) {
	files, err := filepath.Glob(filepath.Join(d.stateDir, "cache", d.kind+"-*.ext4*"))
	var items []space.Item
	for _, f := range files {
		items = append(items, space.Item{Kind: "cache", Name: "cache/" + filepath.Base(f), Paths: []string{f}, Remove: func(context.Context) error {
			d.mu.Lock() // not while it is copied or made
			defer d.mu.Unlock()
			return space.Remove(f)
		}})
	}
	return items, err
}
