package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"banger/api"
	"banger/internal/resource"
)

// copySchema is the version of layerCopy that is written, and the newest that is read.
const copySchema = 1

// layerCopy is layer.json, in a layer's directory: the second copy of what the
// database says of it, and of the images of which it is the topmost layer.
type layerCopy struct {
	Schema int     `json:"schema"`
	Layer  Layer   `json:"layer"`
	Images []Image `json:"images"`
}

func (m *Manager) copyPath(dir string) string { return m.path(dir, "layer.json") }

// keepCopies brings the second copies up to date; m.mu is held.
func (m *Manager) keepCopies(ctx context.Context) error {
	layers, err := m.Store.Layers(ctx)
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	images, err := m.Store.Images(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	var errs []error
	for _, l := range layers {
		c := layerCopy{Schema: copySchema, Layer: l, Images: []Image{}}
		for _, i := range images {
			if n := len(i.Layers); n > 0 && i.Layers[n-1].Digest == l.Digest {
				c.Images = append(c.Images, i)
			}
		}
		errs = append(errs, resource.KeepCopy(m.copyPath(l.Dir), c))
	}
	return errors.Join(errs...)
}

// Adopt registers again the images and layers of which only directories know, as after
// the loss of the database, and sets directories aside that say nothing or belong to
// no image. It comes before the ledger recovers.
func (m *Manager) Adopt(ctx context.Context, log *slog.Logger) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dirs, err := m.Ledger.UnknownDirs(ctx, dirKind, "layers")
	if err != nil {
		return err
	}
	found := map[string]layerCopy{} // by digest
	reasons := map[string]error{}   // by directory
	for _, dir := range dirs {
		c, err := m.readCopy(dir)
		if reasons[dir] = err; err != nil {
			continue
		}
		reasons[dir] = errors.New("it belongs to no image")
		found[c.Layer.Digest] = c
	}
	errs := []error{m.insertFound(ctx, found)}
	layers, err := m.Store.Layers(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, dir := range dirs {
		if slices.ContainsFunc(layers, func(l Layer) bool { return l.Dir == dir }) {
			errs = append(errs, m.Ledger.Adopt(ctx, resource.Object{Owner: layerOwner(dir), Kind: dirKind, Name: dir}))
			continue
		}
		aside, err := m.Dirs.SetAside(dir)
		log.Warn("a directory that nobody knows is set aside", "name", dir, "to", aside, "reason", reasons[dir], "err", err)
		errs = append(errs, err)
	}
	if err := m.keepCopies(ctx); err != nil {
		log.Warn("second copies cannot be kept", "err", err)
	}
	return errors.Join(errs...)
}

func (m *Manager) readCopy(dir string) (layerCopy, error) {
	var c layerCopy
	if err := resource.ReadCopy(m.copyPath(dir), copySchema, &c); err != nil {
		return c, err
	}
	if c.Layer.Dir != dir || c.Layer.Digest == "" {
		return c, fmt.Errorf("%w: it tells of layer %q in %q", resource.ErrDamaged, c.Layer.Digest, c.Layer.Dir)
	}
	_, err := os.Stat(m.path(dir, archiveFile))
	if err != nil { // one of an earlier version, or a disk made of several
		_, err = os.Stat(m.path(dir, layerFile))
	}
	return c, err
}

// insertFound registers the images that found layers tell of, each with the layers
// that there are now, provided that all of them are there.
func (m *Manager) insertFound(ctx context.Context, found map[string]layerCopy) error {
	known, err := m.Store.Layers(ctx)
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	have := map[string]Layer{}
	for digest, c := range found {
		have[digest] = c.Layer
	}
	for _, l := range known { // which is what counts where there are two of one digest
		have[l.Digest] = l
	}
	var errs []error
	for _, c := range found {
		for _, img := range c.Images {
			whole := validName.MatchString(img.Name)
			for i, l := range img.Layers {
				img.Layers[i] = have[l.Digest]
				whole = whole && have[l.Digest].Digest != ""
			}
			if img.Tail != nil {
				tail, ok := have[img.Tail.Digest]
				img.Tail, whole = &tail, whole && ok
			}
			if !whole || len(img.Layers) == 0 {
				continue
			}
			if err := m.Store.InsertImage(ctx, img, false); err != nil && api.CodeOf(err) != api.CodeAlreadyExists {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
