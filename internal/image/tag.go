package image

import (
	"context"
	"fmt"
	"time"

	"banger/api"
	"banger/internal/space"
)

// History says how an image came about, the oldest step first, with what each has made.
func (i Image) History() []api.ImageHistory {
	steps := []api.ImageHistory{}
	c, err := parseConfig([]byte(i.Config))
	if err != nil {
		c.History = nil // of a database that somebody else has written to
	}
	layers := i.Layers
	for _, h := range c.History {
		step := api.ImageHistory{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil && !h.Created.IsZero() {
			step.Created = h.Created
		}
		if !h.EmptyLayer && len(layers) > 0 {
			step.Layer, step.Size, layers = layers[0].Digest, layers[0].Size, layers[1:]
		}
		steps = append(steps, step)
	}
	for _, l := range layers { // of which it says nothing
		steps = append(steps, api.ImageHistory{Layer: l.Digest, Size: l.Size})
	}
	return steps
}

// Tag gives an image that the caller may use another name, as the caller's own. An
// image of the caller's that had the name loses it, as with Pull.
func (m *Manager) Tag(ctx context.Context, caller uint32, name, as string) (Image, error) {
	if !validName.MatchString(as) {
		return Image{}, api.Errorf(api.CodeInvalid, "tag image %q: %q is not a name of an image", name, as).WithHint("%s", nameHint)
	}
	done, err := m.reserve(ctx, caller, as, true)
	if err != nil {
		return Image{}, fmt.Errorf("tag image %q: as %q: %w", name, as, err)
	}
	defer done()
	img, err := m.tag(ctx, caller, name, as)
	if err == nil {
		_ = m.sweep(context.WithoutCancel(ctx)) // what had the name may be gone; what nobody needs is found again
	}
	if isNoSpace(err) {
		err = api.Errorf(api.CodeNoSpace, "%w", err).WithHint("%s", space.Hint)
	}
	return img, api.About(err, "tag image %q: as %q", name, as)
}

func (m *Manager) tag(ctx context.Context, caller uint32, name, as string) (Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock() // so that its layers stay meanwhile
	img, err := m.Get(ctx, caller, name)
	if err != nil || img.Owner == caller && img.Name == as {
		return img, err
	}
	img.Owner, img.Name, img.Used = caller, as, time.Now()
	if err := m.Store.InsertImage(ctx, img, true); err != nil {
		return Image{}, err
	}
	_ = m.keepCopies(context.WithoutCancel(ctx)) // the next start does it otherwise
	return img, nil
}
