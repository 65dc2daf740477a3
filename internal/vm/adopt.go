package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/resource"
)

// Adopt makes the database know what only VMs' directories do, as after its loss or
// after an older one was put back: VMs are registered again from vm.json, what they
// hold from handles.json and from what bears our tag. Directories and disks that
// nobody knows are set aside. It comes before the ledger recovers, which ends and
// removes whatever is unknown then.
func (s *Service) Adopt(ctx context.Context) error {
	recs, err := s.store.VMs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, rec := range recs {
		known[rec.ID] = true
	}
	errs := []error{s.adoptDirs(ctx, known)}
	if recs, err = s.store.VMs(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	unknown, err := s.ledger.Unknown(ctx, "")
	errs = append(errs, err)
	for _, rec := range recs {
		if err := s.adoptHandles(ctx, rec, unknown); err != nil {
			errs = append(errs, fmt.Errorf("take up what VM %q holds: %w", rec.Name, err))
		}
	}
	if len(unknown) > 0 {
		errs = append(errs, s.adoptDisks(ctx, recs))
	}
	if i := slices.IndexFunc(recs, func(r Record) bool { return r.IP.IsValid() }); i >= 0 {
		errs = append(errs, s.network.Prefer(ctx, recs[i].IP))
	}
	for _, rec := range recs {
		s.keepRecord(rec)
	}
	return errors.Join(errs...)
}

// adoptDirs sees to the directories of VMs that have no row.
func (s *Service) adoptDirs(ctx context.Context, known map[string]bool) error {
	dirs, err := s.ledger.UnknownDirs(ctx, KindDir, "vms")
	errs := []error{err}
	for _, dir := range dirs {
		id := path.Base(dir)
		if !known[id] {
			c, err := s.readRecord(id)
			if err == nil {
				err = s.register(ctx, c.VM)
			}
			if err != nil {
				aside, aerr := s.dirs.SetAside(dir)
				s.log.Warn("a directory that nobody knows is set aside", "name", dir, "to", aside, "reason", err, "err", aerr)
				errs = append(errs, aerr)
				continue
			}
		}
		errs = append(errs, s.ledger.Adopt(ctx, resource.Object{Owner: ownerOf(id), Kind: KindDir, Name: dir}))
	}
	return errors.Join(errs...)
}

// register puts the record of a VM back that the database does not know. Where others
// have got its name or address since, it gets another.
func (s *Service) register(ctx context.Context, rec Record) error {
	_, serr := os.Lstat(s.handlesPath(rec.ID))
	_, usable, err := s.readHandles(rec.ID)
	_, restarted := s.restarted[rec.ID]
	switch {
	case err != nil:
		return err
	case (usable || restarted) && rec.Wanted == WantStopped:
		rec.Wanted = WantRunning // it ran; resume finds out whether it does
	case serr == nil && rec.Wanted == WantStopped:
		rec.LastError = "the database was lost, and handles.json did not tell what the VM held: it was ended, if it still ran"
	}
	err = s.store.RestoreVM(ctx, rec)
	if api.CodeOf(err) == api.CodeConflict {
		rec.IP, rec.MAC, rec.UID = Record{}.IP, "", 0
		err = s.store.RestoreVM(ctx, rec)
	}
	if api.CodeOf(err) == api.CodeAlreadyExists {
		rec.Name = rec.Name[:min(len(rec.Name), 50)] + "-" + rec.ID
		err = s.store.RestoreVM(ctx, rec)
	}
	if err == nil {
		s.log.Warn("a VM that the database does not know is registered again", "vm", rec.Name, "id", rec.ID)
	}
	return err
}

// adoptHandles takes up what a VM holds by the word of handles.json and vm.json, is
// there, bears our tag and is not in the ledger.
func (s *Service) adoptHandles(ctx context.Context, rec Record, unknown []resource.Ref) error {
	h, found, err := s.readHandles(rec.ID)
	if err != nil {
		return err
	}
	var objects []resource.Object
	if found {
		if err := s.network.RestoreObjects(ctx, h); err != nil {
			return err
		}
		objects = h.Objects
	}
	if len(unknown) == 0 {
		return nil
	}
	if c, err := s.readRecord(rec.ID); err == nil {
		objects = append(objects, c.Objects...)
	}
	var errs []error
	taken := map[string]bool{}
	for _, o := range objects {
		known := taken[o.Kind+" "+o.Name] || !slices.ContainsFunc(unknown, func(r resource.Ref) bool { return r.Kind == o.Kind && r.Name == o.Name })
		if !known && (o.Owner == ownerOf(rec.ID) || o.Owner == runOwnerOf(rec.ID)) {
			taken[o.Kind+" "+o.Name] = true
			errs = append(errs, s.ledger.Adopt(ctx, o))
		}
	}
	return errors.Join(errs...)
}

// adoptDisks sees to files of VMs that have no row: the newest of a kind is the VM's
// where it has no other, the rest is set aside.
func (s *Service) adoptDisks(ctx context.Context, recs []Record) error {
	unknown, err := s.ledger.Unknown(ctx, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, rec := range recs {
		kinds := map[string][]resource.Ref{}
		for _, ref := range unknown {
			if strings.HasPrefix(ref.Name, "vms/"+rec.ID+"/") && ref.Kind != disk.KindBase { // which is made anew where it is half made
				kinds[ref.Kind] = append(kinds[ref.Kind], ref)
			}
		}
		for kind, refs := range kinds {
			var adopted resource.Ref
			if has, err := s.hasPresent(ctx, rec.ID, kind); err != nil {
				errs = append(errs, err)
				continue
			} else if !has {
				adopted = s.newest(refs)
				errs = append(errs, s.ledger.Adopt(ctx, resource.Object{Owner: ownerOf(rec.ID), Kind: kind, Name: adopted.Name}))
			}
			for _, ref := range refs {
				if ref.Name == adopted.Name {
					continue
				}
				aside, err := resource.SetAside(filepath.Join(s.stateDir, filepath.FromSlash(ref.Name)))
				s.log.Warn("a disk that nobody knows is set aside", "vm", rec.Name, "disk", ref.Name, "to", aside, "err", err)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// hasPresent says whether a VM has an object of a kind that is there.
func (s *Service) hasPresent(ctx context.Context, id, kind string) (bool, error) {
	held, err := s.ledger.Held(ctx, ownerOf(id))
	if err != nil {
		return false, err
	}
	for _, ref := range held {
		if ref.Kind != kind {
			continue
		}
		if presence, err := s.ledger.Inspect(ctx, ref); err != nil || presence == resource.Ours {
			return true, err
		}
	}
	return false, nil
}
