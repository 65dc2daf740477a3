package image

import (
	"context"
	"fmt"
	"strings"

	"banger/internal/resource"
	"banger/internal/space"
)

// Dir returns the directory of a layer.
func (m *Manager) Dir(l Layer) string { return m.Dirs.Path(l.Dir) }

// Unused returns the layers that no image has any more and that could not be removed
// with their last one. Layers that are being made are not among them.
func (m *Manager) Unused(ctx context.Context) ([]space.Item, error) {
	rows, err := m.Ledger.Rows(ctx)
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	var items []space.Item
	for _, ref := range rows {
		if ref.State != resource.Releasing || !strings.HasPrefix(ref.Owner, "layer/") {
			continue
		}
		items = append(items, space.Item{Kind: "layer", Name: ref.Name, Paths: []string{m.Dirs.Path(ref.Name)},
			Remove: func(ctx context.Context) error { return m.Ledger.Release(ctx, ref) }})
	}
	return items, nil
}
