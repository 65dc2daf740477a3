package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// recordSchema is the version of recordCopy that is written, and the newest that is
// read.
const recordSchema = 1

// recordCopy is vm.json, in a VM's directory: the second copy of what the VM is, and of
// what the ledger says that it holds for its life.
type recordCopy struct {
	Schema  int               `json:"schema"`
	VM      Record            `json:"vm"`
	Objects []resource.Object `json:"objects"`
}

func (s *Service) recordPath(id string) string  { return filepath.Join(s.vmDir(id), "vm.json") }
func (s *Service) handlesPath(id string) string { return filepath.Join(s.vmDir(id), "handles.json") }

// keepRecord brings the second copy of a record up to date, once the VM has its
// directory. That it cannot is no reason to refuse what was done: the database has it,
// and the next start tries again.
func (s *Service) keepRecord(rec Record) {
	rec.LastError = "" // of the moment, as is whether it runs: handles.json tells that
	if rec.Wanted == WantRunning || rec.Wanted == WantPaused {
		rec.Wanted = WantStopped
	}
	h, err := s.ledger.Handles(context.Background(), s.installation, ownerOf(rec.ID))
	if err == nil {
		err = resource.KeepCopy(s.recordPath(rec.ID), recordCopy{recordSchema, rec, h.Objects})
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("keep a second copy of what a VM is", "vm", rec.Name, "err", err)
	}
}

// readRecord reads the second copy of what the VM id is. What a record of an older
// schema lacks, settle fills in.
func (s *Service) readRecord(id string) (recordCopy, error) {
	c := recordCopy{VM: Record{RootDisk: api.RootDiskOverlay, VMM: api.VMMAuto}}
	if err := resource.ReadCopy(s.recordPath(id), recordSchema, &c); err != nil {
		return c, err
	}
	rec := c.VM
	known := rec.Wanted == WantStopped || rec.Wanted == WantSuspended || rec.Wanted == WantDeleted
	switch {
	case rec.ID != id || !validName.MatchString(rec.Name) || !known:
		return c, fmt.Errorf("%w: it tells of a VM %q, called %q, that is to be %q", resource.ErrDamaged, rec.ID, rec.Name, rec.Wanted)
	case rec.Network != api.NetworkBridge && rec.Network != api.NetworkNone:
		return c, fmt.Errorf("%w: it tells of a network %q", resource.ErrDamaged, rec.Network)
	case rec.RootDisk != api.RootDiskOverlay && rec.RootDisk != api.RootDiskSnapshot:
		return c, fmt.Errorf("%w: it tells of a root disk %q", resource.ErrDamaged, rec.RootDisk)
	case !rec.VMM.Known():
		return c, fmt.Errorf("%w: it tells of a VMM %q", resource.ErrDamaged, rec.VMM)
	}
	return c, nil
}

// keepHandles writes handles.json, in the directory of a VM that runs: the second copy
// of what the ledger says that it holds, and that its network consists of. That it cannot is no reason to end the VM.
func (s *Service) keepHandles(ctx context.Context, rec Record, inst vmm.Instance) {
	id, owners := rec.ID, []string{ownerOf(rec.ID), runOwnerOf(rec.ID)}
	if rec.Network == api.NetworkBridge {
		owners = append(owners, network.Owner)
	}
	h, err := s.ledger.Handles(ctx, s.installation, owners...)
	if err == nil {
		h.Process = &resource.Process{PID: inst.PID()}
		h.Process.StartTime, err = linux.StartTime(inst.PID())
	}
	if err == nil {
		err = resource.KeepCopy(s.handlesPath(id), h)
	}
	if err != nil {
		s.log.Warn("keep a second copy of what a VM holds", "vm", rec.Name, "err", err)
	}
}

// dropHandles removes handles.json, when what it tells of is given back.
func (s *Service) dropHandles(id string) error {
	return resource.RemoveCopy(s.handlesPath(id))
}

// readHandles reads handles.json of a VM. Found is false where there is none that tells
// of this boot and this installation; one that is damaged is set aside.
func (s *Service) readHandles(id string) (h resource.Handles, found bool, err error) {
	path := s.handlesPath(id)
	err = resource.ReadCopy(path, resource.HandlesSchema, &h)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return h, false, nil
	case errors.Is(err, resource.ErrDamaged), errors.Is(err, resource.ErrNewer):
		aside, aerr := resource.SetAside(path)
		s.log.Warn("a second copy cannot be used and is set aside; the ledger serves", "reason", err, "to", aside)
		return h, false, aerr
	case err != nil:
		return h, false, err
	case !s.ledger.Current(h, s.installation):
		if h.Installation == s.installation { // it ran in an earlier boot
			var spec runSpec
			for _, o := range h.Objects {
				if o.Kind == KindRunDir {
					_ = json.Unmarshal(o.Spec, &spec) // of no more use than to know where its console began
				}
			}
			s.restarted[id] = spec
		}
		s.log.Info("a second copy is of another boot or another installation", "file", path)
		return h, false, resource.RemoveCopy(path)
	}
	return h, true, nil
}

// settleIn makes a new VM's directory, with the copy of its record.
func (s *Service) settleIn(ctx context.Context, rec Record, _ *live, _ api.Reporter) (Record, error) {
	names, err := s.diskNames(ctx, rec.ID)
	if err == nil && names.dir == "" {
		_, err = s.ledger.Acquire(ctx, ownerOf(rec.ID), KindDir, "vms/"+rec.ID, nil)
	}
	if err == nil {
		s.keepRecord(rec)
	}
	return rec, err
}

// newest returns that of the objects, files below the state directory, that was
// written last.
func (s *Service) newest(refs []resource.Ref) resource.Ref {
	var last resource.Ref
	var at int64
	for _, ref := range refs {
		info, err := os.Stat(filepath.Join(s.stateDir, filepath.FromSlash(ref.Name)))
		if err == nil && (last.Name == "" || info.ModTime().UnixNano() > at) {
			last, at = ref, info.ModTime().UnixNano()
		}
	}
	return last
}
