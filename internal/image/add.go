package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/resource"
)

const (
	maxDisks   = 8 // of a VM for its image; what lies above the first seven is one disk
	maxFetches = 3 // blobs of one image that arrive at the same time
)

// Add makes an image of an artifact that is pulled: each layer that is not here becomes a disk while
// it arrives. Replace lets the name, if owner has an image of it, mean the new one. On
// an error nothing is visible; where Add was to replace, layers that arrived whole stay
// until an image takes them or a sweep. Errors: invalid, naming layer and entry;
// no_space; already_exists; conflict.
func (m *Manager) Add(ctx context.Context, owner uint32, name string, replace bool, art Artifact, report api.Reporter) (Image, error) {
	if !validName.MatchString(name) {
		return Image{}, badName(name)
	}
	if report == nil {
		report = func(api.Progress) {}
	}
	done, err := m.reserve(ctx, owner, name, replace)
	if err != nil {
		return Image{}, about("pull", name, err)
	}
	defer done()
	img, err := m.add(ctx, owner, name, replace, art, report)
	return img, about("pull", name, err)
}

func (m *Manager) add(ctx context.Context, owner uint32, name string, replace bool, art Artifact, report api.Reporter) (Image, error) {
	diffs, chains, err := art.chainIDs()
	if err != nil {
		return Image{}, err
	}
	unpin := m.pin(append(chains, tailID(chains)))
	img, err := m.build(ctx, &builder{
		m: m, owner: owner, art: art, diffs: diffs, chains: chains, report: report, memory: allowance{m: m, owner: owner, report: report},
	})
	if err == nil {
		img.Name, img.Owner = name, owner
		m.mu.Lock()
		if err = m.Store.InsertImage(ctx, img, replace); err == nil {
			_ = m.keepCopies(context.WithoutCancel(ctx)) // the image is there all the same; the next start does it otherwise
		}
		m.mu.Unlock()
	}
	unpin()
	if err == nil || !replace { // a pull that broke off goes on another time with what is whole
		_ = m.sweep(context.WithoutCancel(ctx)) // what it cannot remove now another one does
	}
	return img, err
}

// sweep removes the layers that are whole and of no image, unless they are on the way
// into one.
func (m *Manager) sweep(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	orphans, err := m.Store.DeleteOrphans(ctx, m.pinned())
	if err != nil {
		return err
	}
	return m.forget(ctx, orphans)
}

// forget gives back layers whose rows are gone. What stays is Recover's to remove.
func (m *Manager) forget(ctx context.Context, orphans []Layer) error {
	var errs []error
	for _, l := range orphans {
		errs = append(errs, m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(l.Dir)))
	}
	return errors.Join(errs...)
}

// build makes all layers of an image. What arrives when it ends is given back, unless
// another attempt can go on with it.
func (m *Manager) build(ctx context.Context, b *builder) (img Image, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		b.rest()
		err = errors.Join(err, b.abandon(context.WithoutCancel(ctx), b.art.resumes() && brokenOff(err)))
	}()
	if err := b.prefetch(ctx); err != nil {
		return Image{}, err
	}
	for i := range b.chains {
		layer, err := b.layer(ctx, i)
		if err != nil {
			return Image{}, fmt.Errorf("layer %d of %d: %w", i+1, len(b.chains), err)
		}
		b.layers = append(b.layers, layer)
		img.Entries += layer.Entries
	}
	img.Layers = b.layers
	if len(b.chains) > maxDisks {
		tail, err := b.tail(ctx)
		if err != nil {
			return Image{}, fmt.Errorf("merge layers %d to %d: %w", maxDisks, len(b.chains), err)
		}
		img.Tail = &tail
	}
	img.ID, img.Created = digest(b.art.Config), time.Now()
	img.Config, img.Manifest, img.Source = string(b.art.Config), b.art.Manifest, b.art.Source
	return img, nil
}

// builder makes the layers of one artifact.
type builder struct {
	m             *Manager
	owner         uint32
	art           Artifact
	diffs, chains []string
	report        api.Reporter

	layers  []Layer // those that are there
	below   *node   // what they are, one upon the other; valid for the first so many:
	merged  int
	entries int64 // of them
	memory  allowance

	bars    *bars
	fetches []*fetch // by layer; nil for one that is here already or that another makes
	waits   sync.WaitGroup
}

// fetch is a blob that arrives in the directory of the layer that it becomes.
type fetch struct {
	dir   string
	spool *spool
	claim func() // gives up the right to make the layer
	once  sync.Once
}

// prefetch has the blobs that are needed arrive, some at a time.
func (b *builder) prefetch(ctx context.Context) error {
	b.fetches = make([]*fetch, len(b.chains))
	slots := make(chan struct{}, maxFetches)
	var begun []int
	for i := range b.chains {
		if _, ok, err := b.m.Store.Layer(ctx, b.chains[i]); ok || err != nil {
			continue
		}
		if claim := b.m.claim(b.fetching(i)); claim != nil {
			if f, err := b.begin(ctx, i, claim); err == nil {
				b.fetches[i] = f
				begun = append(begun, i)
			} // else it is tried again, and the error told, when its turn comes
		}
	}
	b.bars = newBars(b.art, b.fetches, b.report)
	if err := b.m.Room.Admit("make layers", b.bars.total()); err != nil {
		return err
	}
	b.waits.Go(func() {
		for _, i := range begun {
			slots <- struct{}{}
			b.waits.Go(func() {
				defer func() { <-slots }()
				b.receive(ctx, i)
			})
		}
	})
	return nil
}

// begin makes the directory in which a blob arrives, or takes the one in which an
// earlier pull has left a part of it.
func (b *builder) begin(ctx context.Context, i int, claim func()) (*fetch, error) {
	part := partial{Blob: b.art.Layers[i].Digest, Owner: b.owner}
	if dir, ok := b.m.takePartial(part); ok {
		file, err := b.m.openPartial(dir, b.art.Layers[i].Size)
		if err == nil {
			s := newSpool(file, b.m.Room)
			if err = s.resume(); err == nil {
				return &fetch{dir: dir, spool: s, claim: claim}, nil
			}
			file.Close()
		}
		if err := b.m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(dir)); err != nil {
			claim()
			return nil, err
		}
	}
	dir := "layers/" + resource.RandomName(8)
	if _, err := b.m.Ledger.Acquire(ctx, layerOwner(dir), dirKind, dir, nil); err != nil {
		claim()
		return nil, err
	}
	file, err := b.m.createArchive(dir)
	if err == nil && b.art.resumes() {
		err = b.m.markPartial(dir, part)
	}
	if err != nil {
		claim()
		return nil, errors.Join(err, b.m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(dir)))
	}
	return &fetch{dir: dir, spool: newSpool(file, b.m.Room), claim: claim}, nil
}

func (b *builder) receive(ctx context.Context, i int) {
	b.fetches[i].spool.fill(ctx, b.art.Layers[i], func(n int64) { b.bars.arrived(i, n) })
}

// layer is the layer number i, made here unless it exists or somebody else makes it.
func (b *builder) layer(ctx context.Context, i int) (Layer, error) {
	for b.fetches[i] == nil {
		layer, ok, err := b.m.Store.Layer(ctx, b.chains[i])
		if err != nil {
			return Layer{}, err
		}
		if ok {
			if err := b.entitled(ctx, i, layer); err != nil {
				return Layer{}, err
			}
			return layer, b.ensureDisk(ctx, i, &layer)
		}
		claim := b.m.claim(b.fetching(i))
		if claim == nil {
			if err := b.await(ctx, b.fetching(i)); err != nil {
				return Layer{}, err
			}
			continue
		}
		f, err := b.begin(ctx, i, claim)
		if err != nil {
			return Layer{}, err
		}
		b.fetches[i] = f
		b.waits.Go(func() { b.receive(ctx, i) })
	}
	f := b.fetches[i]
	layer := Layer{Digest: b.chains[i], DiffID: b.diffs[i], Blob: b.art.Layers[i].Digest, Dir: f.dir}
	if err := b.make(ctx, i, f, &layer); err != nil {
		return Layer{}, err
	}
	known, err := b.m.keepLayer(ctx, layer)
	if err != nil {
		return Layer{}, err
	}
	if known.Dir != layer.Dir {
		return known, b.ensureDisk(ctx, i, &known)
	}
	b.fetches[i] = nil
	_ = os.Remove(b.m.path(layer.Dir, partialFile)) // it means nothing beside a layer
	f.end()
	b.bars.made(i)
	return layer, nil
}

// keepLayer makes a whole layer known, and returns the one of that content that is
// known from then on.
func (m *Manager) keepLayer(ctx context.Context, layer Layer) (Layer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok, err := m.Store.Layer(ctx, layer.Digest); ok || err != nil {
		return known, err
	}
	return layer, m.Store.InsertLayer(ctx, layer)
}

// ownDisk says whether a VM has the layer number i as a disk of its own.
func (b *builder) ownDisk(i int) bool { return len(b.chains) <= maxDisks || i < maxDisks-1 }

// make turns a blob that arrives into a layer.
func (b *builder) make(ctx context.Context, i int, f *fetch, layer *Layer) error {
	if err := b.mergeTo(ctx, i); err != nil {
		return err
	}
	w := layerWriter{m: b.m, dir: f.dir, disk: b.ownDisk(i), open: f.spool.reader, low: &lower{i, b.below, b.archive}, memory: &b.memory, maxEntries: b.m.MaxEntries - b.entries}
	tree, err := w.write(ctx, layer, func(p api.Progress) { b.bars.written(i, p) })
	if ferr := f.spool.wait(); ferr != nil {
		return ferr // what the conversion met then is no wonder
	}
	if err != nil {
		return err
	}
	if got := layer.DiffID; got != b.diffs[i] {
		return api.Errorf(api.CodeInvalid, "its content has the digest %s, the image config says %s", got, b.diffs[i])
	}
	if err := f.spool.file.Sync(); err != nil {
		return err
	}
	return b.m.finish(f.dir, tree, layer)
}

// mergeTo brings below up to the first n layers.
func (b *builder) mergeTo(ctx context.Context, n int) error {
	var entries int64
	for _, l := range b.layers[:n] {
		entries += l.Entries
	}
	if entries*lowerDirCost > smallTree { // at worst
		if err := b.memory.take(ctx); err != nil {
			return err
		}
	}
	for ; b.merged < n; b.merged++ {
		tree, err := b.m.tree(b.layers[b.merged])
		if err != nil {
			return err
		}
		b.below = merge(b.below, tree)
		b.entries += b.layers[b.merged].Entries
	}
	return nil
}

// rest drops what takes memory here and can be read again.
func (b *builder) rest() {
	b.below, b.merged, b.entries = nil, 0, 0
	b.memory.end()
}

// await is that of Manager, for a builder, which rests meanwhile.
func (b *builder) await(ctx context.Context, what string) error {
	b.rest()
	return b.m.await(ctx, what)
}

// archive opens that of the layer number i.
func (b *builder) archive(i int) (io.ReadCloser, error) { return b.m.openArchive(b.layers[i]) }

// entitled sees to it that the owner has a layer that exists: it is of an image that
// the owner may use, or who has the blob that it was made of would give it, or the blob
// arrives here once more to show it.
func (b *builder) entitled(ctx context.Context, i int, layer Layer) error {
	mine, err := b.m.List(ctx, b.owner)
	if err != nil {
		return err
	}
	for _, img := range mine {
		if slices.ContainsFunc(img.Layers, func(l Layer) bool { return l.Digest == layer.Digest }) {
			return nil
		}
	}
	if blob := b.art.Layers[i]; blob.Offered != nil && blob.Digest == layer.Blob {
		return blob.Offered(ctx)
	}
	return prove(ctx, b.art.Layers[i], b.diffs[i], b.m.MaxSize+maxOverhead)
}

// abandon gives back what did not become a layer; keep leaves the blobs for another
// attempt.
func (b *builder) abandon(ctx context.Context, keep bool) error {
	b.waits.Wait()
	var errs []error
	for i, f := range b.fetches {
		if f == nil {
			continue
		}
		if !keep || f.spool.n == 0 || !b.m.leavePartial(f.dir, partial{b.art.Layers[i].Digest, b.owner}) {
			errs = append(errs, b.m.Ledger.ReleaseOwner(ctx, layerOwner(f.dir)))
		}
		f.end()
	}
	if keep {
		errs = append(errs, b.m.trimPartials(ctx, b.owner))
	}
	return errors.Join(errs...)
}

// end closes the file; others may make the layer from now on.
func (f *fetch) end() {
	f.once.Do(func() {
		f.spool.file.Close()
		f.claim()
	})
}

// fetching is what is claimed by who makes the layer number i of a blob that arrives. It
// is the owner's own: nobody waits for a registry that somebody else has chosen.
func (b *builder) fetching(i int) string { return fmt.Sprint(b.owner, " ", b.chains[i]) }

// claim gives the caller the right to make something, until the function that it
// returns is called; nil while somebody else has it.
func (m *Manager) claim(what string) (release func()) {
	m.busyMu.Lock()
	defer m.busyMu.Unlock()
	if m.claims[what] != nil {
		return nil
	}
	ended := make(chan struct{})
	m.claims[what] = ended
	return func() {
		m.busyMu.Lock()
		defer m.busyMu.Unlock()
		delete(m.claims, what)
		close(ended)
	}
}

// await returns when nobody has the right to make it.
func (m *Manager) await(ctx context.Context, what string) error {
	m.busyMu.Lock()
	ended := m.claims[what]
	m.busyMu.Unlock()
	if ended == nil {
		return nil
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pin keeps layers from being swept until the function that it returns is called.
func (m *Manager) pin(chains []string) (unpin func()) {
	count := func(n int) {
		m.busyMu.Lock()
		defer m.busyMu.Unlock()
		for _, c := range chains {
			if m.pins[c] += n; m.pins[c] == 0 {
				delete(m.pins, c)
			}
		}
	}
	count(1)
	return func() { count(-1) }
}

func (m *Manager) pinned() []string {
	m.busyMu.Lock()
	defer m.busyMu.Unlock()
	var all []string
	for c := range m.pins {
		all = append(all, c)
	}
	return all
}
