package usage

import (
	"context"
	"fmt"
	"slices"
	"time"

	"banger/api"
	"banger/internal/image"
	"banger/internal/space"
)

// Prune removes what nobody needs, as far as it is the caller's to remove, and goes on
// where one thing cannot be removed.
func (s *Service) Prune(ctx context.Context, caller uint32, req api.Prune) (api.Pruned, error) {
	if req.Lost && caller != rootUID {
		return api.Pruned{}, api.Errorf(api.CodePermissionDenied, "prune what was set aside: only root may do that").WithHint("use sudo")
	}
	items, err := s.garbage(ctx, caller, req)
	if err != nil {
		return api.Pruned{}, err
	}
	return prune(ctx, items, req.DryRun)
}

// PruneImages removes images that no VM needs, the least recently used first, and goes
// on where one cannot be removed.
func (s *Service) PruneImages(ctx context.Context, caller uint32, req api.PruneImages) (api.Pruned, error) {
	if req.Keep != 0 && !req.All {
		return api.Pruned{}, api.Errorf(api.CodeInvalid, "prune images: keep without all").WithHint("--keep goes with --all")
	}
	used, err := s.users(ctx)
	if err != nil {
		return api.Pruned{}, err
	}
	since := time.Now().Add(-time.Duration(req.UnusedFor * float64(time.Second)))
	items, err := s.unusedImages(ctx, caller, used, req.Keep, func(i image.Image) bool {
		return (req.All || i.Name == i.ID) && !i.Used.After(since)
	})
	if err == nil && caller == rootUID {
		var layers []space.Item
		layers, err = s.Images.Unused(ctx)
		items = append(items, layers...)
	}
	if err != nil {
		return api.Pruned{}, err
	}
	return prune(ctx, items, req.DryRun)
}

// prune removes items, or only says what they take.
func prune(ctx context.Context, items []space.Item, dry bool) (api.Pruned, error) {
	out := api.Pruned{Items: []api.PrunedItem{}}
	count := space.NewCounter()
	for _, item := range items { // all of them first: what is removed changes others
		p := api.PrunedItem{Kind: item.Kind, Name: item.Name}
		for _, path := range item.Paths {
			n, err := count.Bytes(path)
			if err != nil {
				return out, err
			}
			p.Size += n
		}
		out.Items = append(out.Items, p)
	}
	for i, item := range items {
		p := &out.Items[i]
		if !dry {
			if err := item.Remove(ctx); err != nil {
				p.Error = api.AsError(err)
			}
		}
		if p.Error == nil {
			out.Size += p.Size
		}
	}
	return out, nil
}

// garbage lists what there is to remove, in the order in which to do it.
func (s *Service) garbage(ctx context.Context, caller uint32, req api.Prune) ([]space.Item, error) {
	used, err := s.users(ctx)
	if err != nil {
		return nil, err
	}
	var items []space.Item
	if req.All {
		if items, err = s.unusedImages(ctx, caller, used, 0, func(image.Image) bool { return true }); err != nil {
			return nil, err
		}
	}
	if caller != rootUID {
		return items, nil
	}
	layers, err := s.Images.Unused(ctx)
	if err != nil {
		return nil, err
	}
	kernels, err := s.garbageOfKernels(ctx, req, used)
	if err != nil {
		return nil, err
	}
	caches, err := s.caches()
	if err != nil {
		return nil, err
	}
	items = slices.Concat(items, layers, kernels, caches)
	if req.Lost {
		lost, err := s.lost()
		if err != nil {
			return nil, err
		}
		items = append(items, lost...)
	}
	return items, nil
}

// unusedImages are the caller's, all for root, of which there is no VM and that go by
// may, the least recently used first; no more of them than it takes for the caller's
// to have only so many bytes as are kept, where that is not 0. The first of those that
// share a layer which nothing else has is said to be what it takes.
func (s *Service) unusedImages(ctx context.Context, caller uint32, used users, keep int64, may func(image.Image) bool) ([]space.Item, error) {
	all, err := s.Images.List(ctx, rootUID)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b image.Image) int { return a.Used.Compare(b.Used) })
	going := map[string]bool{}
	owned := slices.DeleteFunc(slices.Clone(all), func(i image.Image) bool { return caller != rootUID && caller != i.Owner })
	for _, i := range owned {
		if used.images[i.ID] || !may(i) {
			continue
		}
		if stay := slices.DeleteFunc(slices.Clone(owned), func(i image.Image) bool { return going[imageKey(i)] }); keep > 0 && sizeOf(stay) <= keep {
			break
		}
		going[imageKey(i)] = true
	}
	goes := func(i image.Image) bool { return going[imageKey(i)] }
	stays := map[string]bool{} // layers
	for _, i := range all {
		for _, l := range i.Layers {
			stays[l.Digest] = stays[l.Digest] || !goes(i)
		}
	}
	var items []space.Item
	for _, i := range all {
		if !goes(i) {
			continue
		}
		name := nameFor(caller, i)
		item := space.Item{Kind: "image", Name: name, Remove: func(ctx context.Context) error { return s.Images.Remove(ctx, caller, name) }}
		for _, l := range i.Layers {
			if !stays[l.Digest] {
				item.Paths = append(item.Paths, s.Images.Dir(l))
			}
		}
		items = append(items, item)
	}
	return items, nil
}

func imageKey(i image.Image) string { return fmt.Sprint(i.Owner, " ", i.Name) }

// sizeOf is what images take together.
func sizeOf(images []image.Image) (size int64) {
	seen := map[string]bool{}
	for _, i := range images {
		for _, l := range i.Layers {
			if !seen[l.Digest] {
				seen[l.Digest] = true
				size += l.Size
			}
		}
		if i.Tail != nil && !seen[i.Tail.Digest] {
			seen[i.Tail.Digest] = true
			size += i.Tail.Size
		}
	}
	return size
}

// garbageOfKernels are kernels that nothing boots, where all is to go, and what the
// others have of other versions.
func (s *Service) garbageOfKernels(ctx context.Context, req api.Prune, used users) ([]space.Item, error) {
	all, err := s.Kernels.List(ctx)
	if err != nil {
		return nil, err
	}
	var items []space.Item
	for _, k := range all {
		if req.All && !k.Default && !used.kernels[k.Name] {
			items = append(items, space.Item{Kind: "kernel", Name: k.Name, Paths: []string{s.Kernels.Dir(k)},
				Remove: func(ctx context.Context) error { return s.Kernels.Remove(ctx, k.Name) }})
			continue
		}
		stale, err := s.Kernels.Stale(k)
		if err != nil {
			return nil, err
		}
		items = append(items, stale...)
	}
	return items, nil
}
