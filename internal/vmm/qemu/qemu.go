// Package qemu drives QEMU's microvm machine, with KVM where it serves and TCG
// where it does not, so that banger works on any Linux machine.
package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// ownMemory is what a QEMU needs for itself, in bytes. It was measured after the kernel had
// been loaded and while eight programs wrote to a disk: 43 MiB, and 55 MiB of the kernel's
// and initramfs's files, which are page cache.
const ownMemory = 128 << 20

// codeMemory is the most that QEMU takes for the code that it has translated, in bytes: an
// eighth of the host's memory, up to 1 GiB (tcg/region.c, tb-size).
func codeMemory() int64 {
	total, err := linux.MemTotal()
	if err != nil {
		return 1 << 30
	}
	return min(total/8, 1<<30)
}

// Driver implements vmm.Driver.
type Driver struct {
	binary string

	mu     sync.Mutex
	info   *vmm.Info
	tscKHz int64
}

// New returns a driver for the QEMU at path binary; an empty one is looked up in
// PATH.
func New(binary string) *Driver { return &Driver{binary: binary} }

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

// Check implements vmm.Driver.
func (d *Driver) Check(ctx context.Context) (vmm.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, err := exec.LookPath(cmp.Or(d.binary, "qemu-system-x86_64"))
	if err != nil {
		return vmm.Info{}, api.Errorf(api.CodeUnavailable, "look for QEMU: %w", err).
			WithHint("apt-get install qemu-system-x86, or name the program in the configuration (qemu.binary)")
	}
	if d.info != nil && d.info.Binary == path {
		return *d.info, nil
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return vmm.Info{}, api.Errorf(api.CodeUnavailable, "run %s --version: %w", path, err).WithHint("reinstall qemu-system-x86")
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "QEMU emulator version "), "\n")
	info := vmm.Info{Binary: path, Version: version, Accel: "kvm", Reason: "an ordinary guest runs at the speed of the hardware", Overhead: ownMemory}
	if err := linux.ProbeKVM(ctx); err != nil {
		if ctx.Err() != nil {
			return vmm.Info{}, err // which says nothing about KVM
		}
		info.Accel, info.Reason = "tcg", err.Error()
		info.Overhead += codeMemory()
		d.tscKHz = linux.TSCKHz()
	}
	d.info = &info
	return info, nil
}

// How long a VMM may take until its machine runs, or stands where its snapshot did.
const (
	startTimeout   = time.Minute     // on a host that has better things to do; one that fails ends at once
	restoreTimeout = 5 * time.Minute // it reads the guest's memory, from a disk
)

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	i, err := d.launch(ctx, m, nil, func(ctx context.Context, i *instance) error {
		return i.await(ctx, startTimeout, "running")
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// launch starts the QEMU of a machine, with the state that it reads from incoming unless
// that is nil, and waits for it by ready. It closes incoming.
func (d *Driver) launch(ctx context.Context, m vmm.Machine, incoming *os.File, ready func(context.Context, *instance) error) (*instance, error) {
	info, err := d.Check(ctx)
	if err != nil {
		if incoming != nil {
			incoming.Close()
		}
		return nil, err
	}
	p, err := newProcess(m, info.Binary, info.Accel, d.tscKHz, incoming)
	if err == nil {
		err = p.start()
	}
	p.close() // at once: who dials its sockets is to hear of its end
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", info.Binary, err)
	}
	i := &instance{m: m}
	if i.Process, err = vmm.Began(p.cmd, vmm.Log{Path: m.Log, From: p.logStart}); err != nil {
		return nil, fmt.Errorf("start %s: %w", info.Binary, err)
	}
	err = failpoint.Pass("qemu", "forked")
	if err == nil {
		err = i.Bound(m)
	}
	if err == nil {
		err = ready(ctx, i)
	}
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "start %s: %w", info.Binary, i.Abandon(err))
	}
	return i, nil
}

// Attach implements vmm.Driver.
func (d *Driver) Attach(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	i := &instance{m: m}
	var err error
	i.Process, err = vmm.Found(m, func() error { return i.inPlace(ctx) }, vmm.Log{Path: m.Log})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// inPlace finds the monitor's socket open. It does not wait for an answer: a machine that
// stands still for a while, because the host is busy or somebody has stopped it, lives.
func (i *instance) inPlace(ctx context.Context) error {
	conn, err := linux.DialUnix(ctx, filepath.Join(i.m.RunDir, qmpSocket))
	if errors.Is(err, syscall.EAGAIN) { // others wait for it to accept them; unix(7)
		return nil
	}
	if err == nil {
		err = conn.Close()
	}
	return err
}

// instance implements vmm.Instance.
type instance struct {
	*vmm.Process
	m vmm.Machine
}

// await waits until QEMU says that the machine is in a state (RunState of its QMP).
func (i *instance) await(ctx context.Context, timeout time.Duration, state string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		answer, err := i.monitor(ctx, command{Execute: "query-status"})
		var is struct{ Status string }
		if err == nil && json.Unmarshal(answer, &is) == nil && is.Status == state {
			return nil
		}
		select {
		case <-i.Exited():
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (i *instance) monitor(ctx context.Context, commands ...command) (json.RawMessage, error) {
	conn, err := linux.DialUnix(ctx, filepath.Join(i.m.RunDir, qmpSocket))
	if err != nil {
		return nil, err
	}
	return qmp(ctx, conn, commands...)
}

// Dial implements vmm.Instance.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) {
	return linux.DialUnix(ctx, filepath.Join(i.m.RunDir, agentSocket))
}

// Channel implements vmm.Instance.
func (i *instance) Channel() vmm.Channel { return vmm.ChannelSerial }

// PowerButton implements vmm.Instance.
func (i *instance) PowerButton(ctx context.Context) error {
	_, err := i.monitor(ctx, command{Execute: "system_powerdown"})
	return err
}

// ResizeDisk implements vmm.Instance.
func (i *instance) ResizeDisk(ctx context.Context, disk int, size int64) error {
	if err := i.Bound(i.m); err != nil {
		return fmt.Errorf("resize disk %d: %w", disk, err)
	}
	_, err := i.monitor(ctx, command{Execute: "block_resize", Arguments: map[string]any{"device": fmt.Sprintf("d%d", disk), "size": size}})
	if err != nil {
		return fmt.Errorf("resize disk %d: %w", disk, err)
	}
	return nil
}
