package kernel

import (
	"context"
	"path/filepath"

	"banger/internal/space"
)

// Dir returns the directory of a bundle.
func (m *Manager) Dir(k Kernel) string { return m.Dirs.Path(k.Dir) }

// Stale returns the initramfs of a bundle that carry the agent of another version of
// the daemon, which makes its own again when it needs it. No running VM needs them: a
// VMM reads an initramfs once.
func (m *Manager) Stale(k Kernel) ([]space.Item, error) {
	files, err := filepath.Glob(filepath.Join(m.Dir(k), "initramfs-*.cpio"))
	var items []space.Item
	for _, f := range files {
		if filepath.Base(f) == m.initramfs() {
			continue
		}
		items = append(items, space.Item{Kind: "initramfs", Name: k.Dir + "/" + filepath.Base(f), Paths: []string{f},
			Remove: func(context.Context) error { return space.Remove(f) }})
	}
	return items, err
}

// Build names the build of the agent in the initramfs that this daemon makes.
func (m *Manager) Build() string { return m.agentHash }

// initramfs is the name of the file with this daemon's agent.
func (m *Manager) initramfs() string { return "initramfs-" + m.agentHash + ".cpio" }
