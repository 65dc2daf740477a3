package vm

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/disk"
)

// bootRoot is where a machine has its root from.
type bootRoot interface {
	// acquire gets, through the ledger and on behalf of owner, what a run needs beside
	// the VM's files.
	acquire(ctx context.Context, owner string, rec Record) error

	// describe adds it to the machine. It changes nothing.
	describe(ctx context.Context, owner string, rec Record, d *description) error

	// patience is how long the agent may take to answer.
	patience() time.Duration
}

// root is a way to make a VM's root: api.RootDisk. What the VM writes is in one file,
// which it has for its life.
type root interface {
	bootRoot

	// files is the kind of the file, fileSize how large it is for a root of size bytes.
	files() *disk.Disks
	fileSize(size int64) int64

	// check refuses a VM that cannot have such a root, before anything is made.
	check(ctx context.Context, rec Record) error

	// spec says what the file of a fresh root is to be. It makes what is missing for it.
	spec(ctx context.Context, rec Record, report api.Reporter) (disk.Spec, error)

	// grow has the root that owner has follow its file, which has grown. It returns what
	// the machine has for a disk.
	grow(ctx context.Context, owner string, rec Record, file string) (path string, err error)
}

// rootOf is how a VM has its root.
func (s *Service) rootOf(rec Record) root {
	if rec.RootDisk == api.RootDiskSnapshot {
		return snapshotRoot{s}
	}
	return overlayRoot{s}
}

// overlayRoot is an overlay, which the agent makes, of a disk over the image's layers.
type overlayRoot struct{ svc *Service }

func (overlayRoot) acquire(context.Context, string, Record) error { return nil }
func (overlayRoot) patience() time.Duration                       { return bootTimeout }
func (o overlayRoot) files() *disk.Disks                          { return o.svc.uppers }
func (overlayRoot) fileSize(size int64) int64                     { return size }
func (overlayRoot) check(context.Context, Record) error           { return nil }

func (overlayRoot) spec(_ context.Context, rec Record, _ api.Reporter) (disk.Spec, error) {
	return disk.Spec{Size: rec.RootSize}, nil
}

func (overlayRoot) grow(_ context.Context, _ string, _ Record, file string) (string, error) {
	return file, nil
}

func (o overlayRoot) describe(ctx context.Context, _ string, rec Record, d *description) error {
	if err := o.svc.describeLayers(ctx, rec, d); err != nil {
		return err
	}
	names, err := o.svc.diskNames(ctx, rec.ID)
	if err != nil {
		return err
	}
	upper, err := o.svc.uppers.Path(names.root)
	if err != nil {
		return err
	}
	d.boot.Upper = d.disk(upper, false)
	return nil
}

func (s *Service) describeLayers(ctx context.Context, rec Record, d *description) error {
	layers, err := s.assets.Disks(ctx, rec.ImageID)
	for _, path := range layers {
		d.boot.Layers = append(d.boot.Layers, d.disk(path, true))
	}
	return err
}

// snapshotRoot is one block device: a snapshot of the image's base by device-mapper.
type snapshotRoot struct{ svc *Service }

func (snapshotRoot) patience() time.Duration   { return bootTimeout }
func (r snapshotRoot) files() *disk.Disks      { return r.svc.cows }
func (snapshotRoot) fileSize(size int64) int64 { return disk.CowSize(size) }

func (r snapshotRoot) check(ctx context.Context, rec Record) error {
	if err := r.svc.snapshots.Check(); err != nil {
		return err
	}
	base, err := r.svc.assets.Base(ctx, rec.ImageID)
	if err != nil {
		return err
	}
	least := disk.BaseSize(base.Content, base.Entries)
	if base.File != "" {
		info, err := os.Stat(filepath.Join(r.svc.stateDir, filepath.FromSlash(base.File)))
		if err != nil {
			return err
		}
		least = info.Size()
	}
	if rec.RootSize < least {
		return api.Errorf(api.CodeInvalid, "root disk dm-snapshot: a root of %d MiB has no room for the image %q, which takes %d MiB",
			rec.RootSize>>20, rec.Image, least>>20).WithHint("--root-size %dM or more", least>>20)
	}
	return nil
}

func (r snapshotRoot) spec(ctx context.Context, rec Record, report api.Reporter) (disk.Spec, error) {
	base, err := r.svc.base(ctx, rec, report)
	return disk.Spec{Size: disk.CowSize(rec.RootSize), Base: base}, err
}

func (r snapshotRoot) acquire(ctx context.Context, owner string, rec Record) error {
	names, err := r.svc.diskNames(ctx, rec.ID)
	if err != nil {
		return err
	}
	return r.svc.snapshots.Acquire(ctx, owner, disk.Snapshot{Base: names.base, Cow: names.root, Size: rec.RootSize})
}

func (r snapshotRoot) describe(ctx context.Context, owner string, rec Record, d *description) error {
	path, err := r.svc.snapshots.Path(ctx, owner)
	if err != nil {
		return err
	}
	names, err := r.svc.diskNames(ctx, rec.ID)
	if err != nil {
		return err
	}
	cow, err := r.svc.cows.Path(names.root)
	if err != nil {
		return err
	}
	d.boot.Root = d.device(path, cow)
	return nil
}

func (r snapshotRoot) grow(ctx context.Context, owner string, rec Record, _ string) (string, error) {
	return r.svc.snapshots.Grow(ctx, owner, rec.RootSize)
}
