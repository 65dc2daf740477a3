package image

import (
	"context"
	"errors"
	"io"

	"banger/api"
	"banger/internal/resource"
)

// tailID is the identity of the one disk for all layers of a deep image above the
// first seven; "" for an image that has a disk for each.
func tailID(chains []string) string {
	if len(chains) <= maxDisks {
		return ""
	}
	return digest([]byte("merged\n" + chains[maxDisks-2] + "\n" + chains[len(chains)-1]))
}

// tail makes the disk of the layers that have none of their own, unless it is there.
func (b *builder) tail(ctx context.Context) (Layer, error) {
	id := tailID(b.chains)
	b.rest() // the trees are read anew
	for {
		if known, ok, err := b.m.Store.Layer(ctx, id); ok || err != nil {
			return known, err
		}
		if err := b.memory.take(ctx); err != nil { // before others wait for this one
			return Layer{}, err
		}
		if release := b.m.claim(id); release != nil {
			defer release()
			break
		}
		if err := b.await(ctx, id); err != nil {
			return Layer{}, err
		}
	}
	var below, tail *node
	for i, l := range b.layers {
		tree, err := b.m.tree(l)
		switch {
		case err != nil:
			return Layer{}, err
		case i < maxDisks-1:
			below = merge(below, tree)
		case tail == nil:
			tail = tree
		default:
			tail = overlaid(tail, tree)
		}
	}
	tail = settled(tail, below)
	// For the writer each file counts once more, which is less than it takes (some 350 bytes
	// a file in all): real images are deep, and what is allowed stays below 100 MB.
	if below.weight(lowerFileCost, lowerDirCost)+tail.weight(2*lowerFileCost, dirCost) > b.m.MaxMemory {
		return Layer{}, api.Errorf(api.CodeInvalid, "%w", errMemory).WithHint(limited, "max_memory")
	}
	defer sparing(b.m.MaxMemory)()
	return b.m.derive(ctx, id, tail, b.archive)
}

// derive makes a layer that has a disk only, of archives that are kept.
func (m *Manager) derive(ctx context.Context, id string, tree *node, archive func(int) (io.ReadCloser, error)) (layer Layer, err error) {
	layer = Layer{Digest: id, Dir: "layers/" + resource.RandomName(8)}
	if _, err := m.Ledger.Acquire(ctx, layerOwner(layer.Dir), dirKind, layer.Dir, nil); err != nil {
		return Layer{}, err
	}
	err = m.writeDisk(layer.Dir, func(out *sparseWriter) error { return writeFlat(ctx, out, tree, archive, m.maxDisk()) })
	if err == nil {
		err = syncDir(m.Dirs.Path(layer.Dir))
	}
	if err == nil {
		layer.Size, err = m.allocated(layer.Dir)
	}
	if err == nil {
		layer, err = m.keepLayer(ctx, layer)
	}
	if err != nil {
		return Layer{}, errors.Join(err, m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(layer.Dir)))
	}
	return layer, nil
}
