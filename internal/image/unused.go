package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"banger/internal/resource"
	"banger/internal/space"
)

// Dir returns the directory of a layer.
func (m *Manager) Dir(l Layer) string { return m.Dirs.Path(l.Dir) }

// Unused returns the layers that no image has any more and that could not be removed
// with their last one, and those of pulls that broke off. Layers that are being made
// are not among them.
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
	for p, dir := range m.waiting() {
		items = append(items, space.Item{Kind: "layer", Name: "a part of " + p.Blob, Paths: []string{m.Dirs.Path(dir)},
			Remove: func(ctx context.Context) error { return m.dropPartial(ctx, p) }})
	}
	orphans, err := m.orphans(ctx)
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	for _, l := range orphans {
		items = append(items, space.Item{Kind: "layer", Name: l.Digest, Paths: []string{m.Dir(l)}, Remove: m.sweep})
	}
	return items, nil
}

// orphans are the layers that are whole, of no image, and on the way into none.
func (m *Manager) orphans(ctx context.Context) ([]Layer, error) {
	images, err := m.Store.Images(ctx)
	if err != nil {
		return nil, err
	}
	used := m.pinned()
	for _, i := range images {
		for _, l := range i.Layers {
			used = append(used, l.Digest)
		}
		if i.Tail != nil {
			used = append(used, i.Tail.Digest)
		}
	}
	layers, err := m.Store.Layers(ctx)
	return slices.DeleteFunc(layers, func(l Layer) bool { return slices.Contains(used, l.Digest) }), err
}
