package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// snapshotTimeout is how long a guest's memory may take to be written.
const snapshotTimeout = 5 * time.Minute

// Pause implements vmm.Instance. Where a bare pause would cost the guest its vsock, the
// VMM is stopped instead.
func (i *instance) Pause(ctx context.Context) error {
	stopped, err := linux.Stopped(i.PID())
	if err != nil || stopped {
		return err
	}
	if !i.features.gatedResume {
		return i.setState(ctx, "Paused")
	}
	if err := linux.Stop(ctx, i.Pidfd(), i.PID()); err != nil {
		return errors.Join(err, linux.Continue(i.Pidfd()))
	}
	return nil
}

// Resume implements vmm.Instance.
func (i *instance) Resume(ctx context.Context) error {
	if err := linux.Continue(i.Pidfd()); err != nil {
		return err
	}
	return i.setState(ctx, "Resumed")
}

// setState changes the state of a machine that is not frozen, unless it is in that state.
func (i *instance) setState(ctx context.Context, state string) error {
	var info instanceInfo
	if err := i.api.get(ctx, "/", &info); err != nil {
		return err
	}
	if (info.State == "Paused") == (state == "Paused") {
		return nil
	}
	return i.api.patch(ctx, "/vm", vmState{state})
}

// Snapshot implements vmm.Instance.
func (i *instance) Snapshot(ctx context.Context, dir string) error {
	if err := i.snapshotTo(ctx, dir); err != nil {
		return fmt.Errorf("snapshot machine %s: %w", i.m.ID, err)
	}
	return nil
}

func (i *instance) snapshotTo(ctx context.Context, dir string) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := i.pauseProperly(ctx); err != nil {
		return err
	}
	names := []string{snapshotState, snapshotMemory}
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil && i.jailed {
			err = f.Chown(int(i.m.UID), int(i.m.UID))
		}
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if !i.jailed {
			continue
		}
		inside := i.snapshot(dir, name)
		if err := linux.BindInto(i.Pidfd(), filepath.Join(dir, name), inside); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, linux.InMounts(i.Pidfd(), func() error { return linux.Unmount(inside) }))
		}()
	}
	body := snapshotCreate{"Full", i.snapshot(dir, snapshotState), i.snapshot(dir, snapshotMemory)}
	if err := i.api.do(ctx, snapshotTimeout, "PUT", "/snapshot/create", body, nil); err != nil {
		return err
	}
	if err := failpoint.Pass("firecracker", "snapshot"); err != nil {
		return err
	}
	for _, name := range names {
		if err := settle(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return linux.SyncFile(dir)
}

// pauseProperly has a paused machine be paused by the VMM itself, which has to write.
func (i *instance) pauseProperly(ctx context.Context) error {
	stopped, err := linux.Stopped(i.PID())
	if err == nil && stopped {
		err = linux.Continue(i.Pidfd())
	}
	if err == nil {
		err = i.setState(ctx, "Paused")
	}
	if err != nil && stopped { // it is to stand still whatever comes
		err = errors.Join(err, linux.Stop(context.WithoutCancel(ctx), i.Pidfd(), i.PID()))
	}
	return err
}

// settle makes a file of a snapshot root's alone and durable, and gives the room back
// that the zeros in it take.
func settle(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chown(0, 0); err != nil {
		return err
	}
	if err := linux.DigHoles(f); err != nil {
		return err
	}
	return f.Sync()
}

// checkSnapshot finds the files of a snapshot whole, as far as their sizes tell.
func checkSnapshot(m vmm.Machine, dir string) error {
	for _, name := range []string{snapshotState, snapshotMemory} {
		info, err := os.Lstat(filepath.Join(dir, name))
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular() || info.Size() == 0 || name == snapshotMemory && info.Size() != m.Memory:
			return fmt.Errorf("%s: it has %d bytes, and the machine %d of memory", filepath.Join(dir, name), info.Size(), m.Memory)
		}
	}
	return nil
}

// load has the Firecracker take a snapshot up. The machine stays paused.
func (i *instance) load(ctx context.Context) error {
	for _, r := range i.console() {
		if err := i.api.put(ctx, r.path, r.body); err != nil {
			return err
		}
	}
	body := snapshotLoad{
		State:  i.snapshot(i.from, snapshotState),
		Memory: memoryBackend{"File", i.snapshot(i.from, snapshotMemory)},
	}
	if i.m.NIC != nil {
		body.Networks = []networkOverride{{ifaceID, i.m.NIC.Tap}}
	}
	if i.features.vsockOverride {
		body.Vsock = &vsockOverride{i.socket(vsockSocket)}
	}
	if err := i.api.do(ctx, restoreTimeout, "PUT", "/snapshot/load", body, nil); err != nil {
		return err
	}
	return i.confine()
}
