package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/vmm"
)

// capability is a concern of VMs that plugs into their lifecycle. The lifecycle
// has a kernel, a root and a channel; what else a VM has, a capability brings, and
// the code of the lifecycle names none of them. All are called in one order, for
// every VM; one that a VM does not have does nothing.
type capability interface {
	// step is what the time line of a start calls acquire; empty where that takes none.
	step() string

	// settle fills in what the record of a VM that is about to be made or started
	// lacks.
	settle(ctx context.Context, rec Record) (Record, error)

	// acquire gets, through the ledger and on behalf of owner, what a run needs.
	acquire(ctx context.Context, owner string, rec Record) error

	// adopt takes up what an earlier daemon acquired for a VM that runs.
	adopt(ctx context.Context, owner string, rec Record) error

	// describe adds what was acquired or adopted to the machine. It changes nothing.
	describe(ctx context.Context, owner string, rec Record, d *description) error

	// configure adds what the guest is told at each connection.
	configure(ctx context.Context, rec Record, c *wire.Configure) error

	// change follows a change of the record, whether the VM runs or not.
	change(ctx context.Context, owner string, to Record) error

	// released follows the end of a run, when all that owner held is given back.
	released(ctx context.Context, owner string) error
}

// inert is a capability that does nothing, for others to embed.
type inert struct{}

func (inert) step() string                                                 { return "" }
func (inert) settle(_ context.Context, rec Record) (Record, error)         { return rec, nil }
func (inert) acquire(context.Context, string, Record) error                { return nil }
func (inert) adopt(context.Context, string, Record) error                  { return nil }
func (inert) describe(context.Context, string, Record, *description) error { return nil }
func (inert) configure(context.Context, Record, *wire.Configure) error     { return nil }
func (inert) change(context.Context, string, Record) error                 { return nil }
func (inert) released(context.Context, string) error                       { return nil }

// description is a machine as it is put together.
type description struct {
	machine vmm.Machine
	boot    wire.Boot
}

// disk adds a disk and returns the name of its device in the guest.
func (d *description) disk(path string, readOnly bool) string {
	return d.add(vmm.Disk{Path: path, ReadOnly: readOnly})
}

// device is disk for a block device that can be written to, by which file changes.
func (d *description) device(path, file string) string {
	return d.add(vmm.Disk{Path: path, Block: true, File: file})
}

func (d *description) add(disk vmm.Disk) string {
	d.machine.Disks = append(d.machine.Disks, disk)
	return diskName(len(d.machine.Disks) - 1)
}

// diskName is what the guest's kernel calls disk number i: vda to vdz, then vdaa.
func diskName(i int) string {
	name := ""
	for ; i >= 0; i = i/26 - 1 {
		name = string(rune('a'+i%26)) + name
	}
	return "vd" + name
}

// settle completes a record by all capabilities.
func (s *Service) settle(ctx context.Context, rec Record) (Record, error) {
	var err error
	for _, c := range s.capabilities {
		if rec, err = c.settle(ctx, rec); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

// released tells the capabilities that a run is over, the last one first.
func (s *Service) released(ctx context.Context, owner string) error {
	var errs []error
	for _, c := range slices.Backward(s.capabilities) {
		errs = append(errs, c.released(ctx, owner))
	}
	return errors.Join(errs...)
}

// configuration is what the guest is told at each connection.
func (s *Service) configuration(ctx context.Context, rec Record) (wire.Configure, error) {
	var c wire.Configure
	for _, capability := range s.capabilities {
		if err := capability.configure(ctx, rec, &c); err != nil {
			return c, fmt.Errorf("configure guest of VM %q: %w", rec.Name, err)
		}
	}
	return c, nil
}

// personality makes a guest somebody: its name and id, the time, and randomness of
// its own.
type personality struct{ inert }

func (personality) describe(_ context.Context, _ string, rec Record, d *description) error {
	d.boot.Hostname, d.boot.MachineID, d.boot.Init = rec.Name, rec.MachineID, rec.Init
	return nil
}

func (personality) configure(_ context.Context, rec Record, c *wire.Configure) error {
	c.Hostname, c.MachineID, c.Time = rec.Name, rec.MachineID, time.Now().UnixNano()
	c.Entropy = make([]byte, 64)
	rand.Read(c.Entropy)
	return nil
}

// workDisk is the disk at /root, which outlives the root.
type workDisk struct {
	inert
	svc *Service
}

func (w workDisk) describe(ctx context.Context, _ string, rec Record, d *description) error {
	names, err := w.svc.diskNames(ctx, rec.ID)
	if err != nil || rec.DiskSize == 0 || names.work == "" { // one that was asked for while it ran comes with the next start
		return err
	}
	path, err := w.svc.works.Path(names.work)
	if err != nil {
		return err
	}
	d.boot.Work = d.disk(path, false)
	return nil
}
