package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/space"
)

// fillTimeout is what a machine is given to copy an image.
const fillTimeout = 30 * time.Minute

// baseOwnerOf is the owner in the ledger of a base that is being made for a VM's start.
func baseOwnerOf(id string) string { return "vm/" + id + "/base" }

// fillRoot has the agent fill a disk with what the image's layers have.
type fillRoot struct {
	svc  *Service
	disk string // its path
}

func (fillRoot) acquire(context.Context, string, Record) error { return nil }
func (fillRoot) patience() time.Duration                       { return fillTimeout }

func (f fillRoot) describe(ctx context.Context, _ string, rec Record, d *description) error {
	if err := f.svc.describeLayers(ctx, rec, d); err != nil {
		return err
	}
	d.boot.Fill = d.disk(f.disk, false)
	return nil
}

// base returns the base of a VM's image, a file below the state directory, and makes
// it where it is missing: the layers are of strangers, so a machine with them and an
// empty disk, in which none of their programs run, copies them, once for all VMs.
func (s *Service) base(ctx context.Context, rec Record, report api.Reporter) (file string, err error) {
	select {
	case s.filling <- struct{}{}: // one at a time: others of the same image find it made
		defer func() { <-s.filling }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	base, err := s.assets.Base(ctx, rec.ImageID)
	if err != nil || base.File != "" {
		return base.File, err
	}
	size := disk.BaseSize(base.Content, base.Entries)
	if err := s.room.Admit(fmt.Sprintf("flatten image %q", rec.Image), base.Content+disk.Overhead(size)); err != nil {
		return "", err
	}
	report(api.Progress{Step: "flatten image"})
	after := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, s.ledger.ReleaseOwner(after, baseOwnerOf(rec.ID))) }()
	name := s.bases.Name("vms/" + rec.ID)
	if _, err := s.ledger.Acquire(ctx, baseOwnerOf(rec.ID), disk.KindBase, name, disk.Spec{Size: size}); err != nil {
		return "", err
	}
	path, err := s.bases.Path(name)
	if err != nil {
		return "", err
	}
	b, err := s.boot(ctx, readOwnerOf(rec.ID), reader(rec), fillRoot{s, path}, newStopwatch(), 0, report)
	if err == nil { // it has copied everything before its agent answers
		b.conn.Close()
		err = b.inst.Close()
	}
	if err = errors.Join(err, s.ledger.ReleaseOwner(after, readOwnerOf(rec.ID))); err != nil {
		return "", fmt.Errorf("flatten image %q: %w", rec.Image, err)
	}
	return s.bases.Keep(name, base.Dir)
}

// Cache returns the bases of images of which there is no VM with such a root. They are
// made again when they are needed. Where it cannot be told which are in use, none is.
func (s *Service) Cache() ([]space.Item, error) {
	ctx := context.Background()
	files, err := s.assets.Bases()
	if err != nil || len(files) == 0 {
		return nil, err
	}
	used, err := s.basesUsed(ctx)
	if err != nil {
		s.log.Warn("find the bases that are in use", "err", err)
		return nil, nil
	}
	var items []space.Item
	for _, file := range files {
		if used[file] {
			continue
		}
		at := filepath.Join(s.stateDir, filepath.FromSlash(file))
		items = append(items, space.Item{Kind: "cache", Name: file, Paths: []string{at}, Remove: func(ctx context.Context) error {
			select {
			case s.filling <- struct{}{}: // who starts a VM meanwhile finds it gone, and makes it
				defer func() { <-s.filling }()
			case <-ctx.Done():
				return ctx.Err()
			}
			used, err := s.basesUsed(ctx)
			if err != nil || used[file] {
				return err
			}
			return space.Remove(at)
		}})
	}
	return items, nil
}

// basesUsed are the bases that VMs have, or will have at their first start.
func (s *Service) basesUsed(ctx context.Context) (map[string]bool, error) {
	recs, err := s.store.VMs(ctx)
	used := map[string]bool{}
	for _, rec := range recs {
		if rec.RootDisk != api.RootDiskSnapshot {
			continue
		}
		base, berr := s.assets.Base(ctx, rec.ImageID)
		names, nerr := s.diskNames(ctx, rec.ID)
		err = errors.Join(err, berr, nerr)
		used[base.File], used[names.base] = true, true
	}
	return used, err
}
