// Package firecracker drives Firecracker: one process a machine, which its jailer puts
// into a chroot as a user of its own, with a REST API on a Unix socket.
//
// A machine's run directory holds the directory of the VMM's sockets and an empty one,
// over which, in the VMM's own mount namespace alone, lies the file system in memory that
// is the chroot. So of the chroot nothing has to be given back. What the VMM needs of the
// host is bound into it; what only a start needs goes before the guest runs, and the
// directory of the sockets is root's from then on.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// ownMemory is what a Firecracker needs for itself, in bytes: less than 5 MiB by its
// specification, its program in the chroot, and the kernel's and initramfs's files, which
// are page cache.
const ownMemory = 64 << 20

const (
	startTimeout   = time.Minute
	restoreTimeout = 5 * time.Minute // it reads the guest's memory, from a disk
)

// Options are what a Driver is made of.
type Options struct {
	Binary    string // path or name of the program; empty: looked for
	Jailer    string // likewise; empty: looked for beside Binary first
	NoJail    bool   // run it as root, with all of the host in sight
	HugePages bool   // have guests' memory in pages of 2 MiB
	AsyncIO   bool   // io_uring for disks, which Firecracker calls a developer preview
	Disk      Rate   // of each disk of a machine
	Network   Rate   // of each direction
}

// Driver implements vmm.Driver.
type Driver struct {
	options  Options
	probeKVM func(context.Context) error

	mu       sync.Mutex
	vmm      program
	jailer   program
	features features
	probed   bool // KVM was, which takes long where there is none
	noKVM    error
}

// New returns a driver.
func New(o Options) *Driver { return &Driver{options: o, probeKVM: linux.ProbeKVM} }

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "firecracker" }

// Check implements vmm.Driver.
func (d *Driver) Check(ctx context.Context) (vmm.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.vmm.current() || !d.options.NoJail && !d.jailer.current() {
		if err := d.look(ctx); err != nil {
			d.vmm, d.jailer = program{}, program{}
			return vmm.Info{}, err
		}
	}
	info := vmm.Info{
		Binary: d.vmm.path, Version: d.vmm.version.String(), Digest: d.vmm.digest, Accel: "kvm", Overhead: ownMemory,
		Reason: "jailed by " + d.jailer.path,
	}
	if d.options.NoJail {
		info.Reason = "without its jailer, as root: the configuration says so"
	}
	if !d.vmm.version.before(newest + 1) {
		info.Reason += fmt.Sprintf("; newer than 1.%d, which it is treated as", newest)
	}
	return info, nil
}

// look finds the programs, and out whether they serve.
func (d *Driver) look(ctx context.Context) error {
	path, err := find("firecracker", d.options.Binary, "")
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "look for Firecracker: %w", err).WithHint(hint)
	}
	if d.vmm, err = identify(ctx, path, "Firecracker"); err != nil {
		return err
	}
	if d.features, err = d.vmm.version.features(); err != nil {
		return wrong(path, err.Error())
	}
	if !d.options.NoJail {
		path, err := find("jailer", d.options.Jailer, filepath.Dir(d.vmm.path))
		if err != nil {
			return api.Errorf(api.CodeUnavailable, "look for Firecracker's jailer: %w", err).WithHint(hint)
		}
		if d.jailer, err = identify(ctx, path, "Jailer"); err != nil {
			return err
		}
		if d.jailer.version != d.vmm.version {
			return wrong(path, fmt.Sprintf("the jailer is of version %s, %s of %s", d.jailer.version, d.vmm.path, d.vmm.version))
		}
	}
	if !d.probed {
		err := d.probeKVM(ctx)
		if err != nil && ctx.Err() != nil {
			return err // which says nothing about KVM
		}
		d.probed, d.noKVM = true, err
	}
	if d.noKVM != nil {
		return api.Errorf(api.CodeUnsupported, "run machines by Firecracker: it needs KVM: %w", d.noKVM).
			WithHint("QEMU emulates them (--vmm qemu); banger doctor says more of KVM")
	}
	return nil
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	return d.launch(ctx, m, "", startTimeout, (*instance).boot)
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, m vmm.Machine, dir string) (vmm.Instance, error) {
	if err := checkSnapshot(m, dir); err != nil {
		return nil, fmt.Errorf("restore machine %s: %w", m.ID, err)
	}
	return d.launch(ctx, m, dir, restoreTimeout, (*instance).load)
}

// launch starts the Firecracker of a machine and has it go so far as run says.
func (d *Driver) launch(ctx context.Context, m vmm.Machine, from string, timeout time.Duration, run func(*instance, context.Context) error) (vmm.Instance, error) {
	info, err := d.Check(ctx)
	if err != nil {
		return nil, err
	}
	i, err := d.begin(m, from)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "start %s: %w", info.Binary, err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = failpoint.Pass("firecracker", "forked")
	if err == nil {
		err = i.Bound(m)
	}
	if err == nil {
		err = i.awaitAPI(ctx)
	}
	if err == nil {
		err = run(i, ctx)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if _, says := errors.AsType[*fault](err); says { // why it is
			i.Kill()
		} else {
			err = i.Abandon(err)
		}
		return nil, errors.Join(api.Errorf(api.CodeUnavailable, "start %s: %w", info.Binary, err), i.Close())
	}
	go i.watchConsole()
	return i, nil
}

// Attach implements vmm.Driver.
func (d *Driver) Attach(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	_, _ = d.Check(ctx) // a machine lives, whatever has become of the program
	i := d.newInstance(m, "")
	p, err := vmm.Found(m, func() error { return i.inPlace(ctx) }, i.logs()...)
	if err != nil {
		return nil, err
	}
	i.Process = p
	go i.agent.find(i.closed)
	go i.watchConsole()
	return i, nil
}

// newInstance describes the Firecracker of a machine that has no process yet.
func (d *Driver) newInstance(m vmm.Machine, from string) *instance {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := place{m: m, jailed: !d.options.NoJail, from: from}
	closed, let := context.WithCancel(context.Background())
	return &instance{
		closed: closed, let: let, place: p, program: filepath.Base(d.vmm.path), options: d.options, features: d.features, agent: newAgent(p.sockets()), api: newClient(p.sockets(), apiSocket),
	}
}

// logs are where the VMM says what it has to say.
func (p place) logs() []vmm.Log {
	from := int64(0)
	if info, err := os.Stat(p.m.Log); err == nil {
		from = info.Size()
	}
	return []vmm.Log{{Path: p.m.Log, From: from}, {Path: p.log()}}
}
