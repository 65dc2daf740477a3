package firecracker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"banger/internal/failpoint"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// How many devices a machine may have on either bus.
const (
	maxOnMMIO = 17
	maxOnPCI  = 31
)

// guestCID is the guest's address by vsock, of which nobody but the guest knows.
const guestCID = 3

// ifaceID is the name of the machine's network interface.
const ifaceID = "eth0"

// The guest may write so much to its serial port, in bytes: at once, and in a second.
const (
	serialBurst = 4 << 20
	serialRate  = 256 << 10
)

// balloonInterval is how often, in seconds, the guest's balloon tells of its memory.
const balloonInterval = 10

// kernelArgs has the kernel be quick and quiet: the guest ends Firecracker by the
// keyboard controller's reset, the only way to do so; the controller's probing takes
// longer than all the rest.
const kernelArgs = "console=ttyS0 quiet reboot=k panic=-1 cryptomgr.notests mitigations=off random.trust_cpu=on " +
	"i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd " + wire.VsockWord

// instance implements vmm.Instance.
type instance struct {
	*vmm.Process
	place
	program  string // its name
	options  Options
	features features
	api      *client
	agent    *agent
	closed   context.Context // ends with Close
	let      context.CancelFunc
}

// devices is how many a machine has: disks, network, vsock, entropy and balloon.
func (p place) devices() int {
	n := len(p.m.Disks) + 3
	if p.m.NIC != nil {
		n++
	}
	return n
}

// pci says whether the machine needs the bus that has room for more.
func (p place) pci() bool { return p.devices() > maxOnMMIO }

// check finds what Firecracker would take and not do, or tell of only when the machine is
// to start.
func (i *instance) check() error {
	room := maxOnMMIO
	if i.features.pci {
		room = maxOnPCI
	}
	if n := i.devices(); n > room {
		return fmt.Errorf("machine %s: it has %d devices, %d disks among them; this Firecracker has room for %d", i.m.ID, n, len(i.m.Disks), room)
	}
	for n, d := range i.m.Disks {
		info, err := os.Lstat(d.Path)
		if err != nil {
			return fmt.Errorf("disk %d: %w", n, err)
		}
		mode := info.Mode()
		if block := mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0; d.Block != block && !followed(d) || !d.Block && !mode.IsRegular() {
			return fmt.Errorf("disk %d: %s is no %s", n, d.Path, map[bool]string{true: "block device", false: "regular file"}[d.Block])
		}
	}
	if i.from == "" {
		if err := checkKernel(i.m.Kernel); err != nil {
			return err
		}
	}
	if i.m.NIC == nil {
		return nil
	}
	_, err := linux.TapMTU(i.m.NIC.Tap)
	return err
}

// followed says whether a disk is a block device behind a link, as those of
// device-mapper may be.
func followed(d vmm.Disk) bool {
	info, err := os.Stat(d.Path)
	return err == nil && d.Block && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

func checkKernel(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	if _, err := elf.NewFile(f); err != nil {
		return fmt.Errorf("kernel %s: it is no uncompressed vmlinux: %w", path, err)
	}
	return nil
}

// boot describes the machine to its Firecracker, and starts it.
func (i *instance) boot(ctx context.Context) error {
	requests, err := i.requests()
	if err != nil {
		return err
	}
	for _, r := range requests {
		if err := i.api.put(ctx, r.path, r.body); err != nil {
			return err
		}
	}
	if err := i.confine(); err != nil {
		return err
	}
	if err := failpoint.Pass("firecracker", "configured"); err != nil {
		return err
	}
	return i.api.do(ctx, startTimeout, "PUT", "/actions", action{"InstanceStart"}, nil) // it loads the kernel
}

// request is a PUT.
type request struct {
	path string
	body any
}

// requests describe the machine.
func (i *instance) requests() ([]request, error) {
	config := machineConfig{CPUs: i.m.CPUs, MiB: i.m.Memory >> 20}
	if i.options.HugePages {
		if err := linux.HugePagesFree(i.m.Memory); err != nil {
			return nil, err
		}
		config.HugePages = "2M"
	}
	requests := append(i.console(), request{"/machine-config", config},
		request{"/boot-source", bootSource{i.inside("kernel", i.m.Kernel), i.inside("initrd", i.m.Initrd), kernelArgs + " " + i.m.Cmdline}})
	engine := "Sync"
	if i.options.AsyncIO {
		if err := linux.CheckIOUring(); err != nil {
			return nil, err
		}
		engine = "Async"
	}
	for n, d := range i.m.Disks {
		cache := "Writeback" // what the guest flushes is on the disk
		if d.ReadOnly {
			cache = "Unsafe" // there is nothing to flush
		}
		requests = append(requests, request{"/drives/" + driveID(n), drive{
			ID: driveID(n), Path: i.disk(n), ReadOnly: d.ReadOnly, CacheType: cache, Engine: engine, Limit: i.options.Disk.limiter(),
		}})
	}
	if i.m.NIC != nil {
		nic := networkInterface{ID: ifaceID, Tap: i.m.NIC.Tap, MAC: i.m.NIC.MAC, RxLimit: i.options.Network.limiter(), TxLimit: i.options.Network.limiter()}
		if mtu, err := linux.TapMTU(i.m.NIC.Tap); err != nil {
			return nil, err
		} else if mtu != 1500 && i.features.mtu {
			nic.MTU = mtu
		}
		requests = append(requests, request{"/network-interfaces/" + ifaceID, nic})
	}
	return append(requests, request{"/vsock", vsockDevice{guestCID, i.socket(vsockSocket)}}, request{"/entropy", entropy{}},
		request{"/balloon", balloon{DeflateOnOOM: true, Interval: balloonInterval}}), nil
}

func driveID(n int) string { return fmt.Sprintf("d%d", n) }

// console says how fast the guest may write to its serial port, whose output is the
// VMM's. It is said before a snapshot is loaded as well.
func (i *instance) console() []request {
	if !i.features.serialLimit {
		return nil
	}
	return []request{{"/serial", serial{&tokenBucket{Size: serialRate, Refill: 1000, Burst: serialBurst}}}}
}

// inPlace finds the API's socket open, and the machine started. It does not insist on an
// answer: a machine that stands still for a while, because the host is busy or somebody
// has stopped it, lives.
func (i *instance) inPlace(ctx context.Context) error {
	conn, err := linux.DialUnixIn(ctx, i.sockets(), apiSocket)
	if err != nil {
		if stands(err) {
			return nil
		}
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var v versionInfo
	var info instanceInfo
	if i.api.get(ctx, "/version", &v) != nil || i.api.get(ctx, "/", &info) != nil {
		return nil
	}
	if info.State == "Not started" {
		return errors.New("its machine was not started")
	}
	running, err := parseVersion(v.Version)
	if err == nil {
		i.features, err = running.features()
	}
	return err
}

// Dial implements vmm.Instance.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) { return i.agent.dial(ctx, i.Exited()) }

// Channel implements vmm.Instance.
func (i *instance) Channel() vmm.Channel { return vmm.ChannelStream }

// Close implements vmm.Instance.
func (i *instance) Close() error {
	i.let()
	i.agent.close()
	i.api.http.CloseIdleConnections()
	return i.Process.Close()
}

// PowerButton implements vmm.Instance: it presses Ctrl, Alt and Del.
func (i *instance) PowerButton(ctx context.Context) error {
	return i.api.put(ctx, "/actions", action{"SendCtrlAltDel"})
}

// ResizeDisk implements vmm.Instance.
func (i *instance) ResizeDisk(ctx context.Context, n int, size int64) error {
	err := i.Bound(i.m)
	if err == nil {
		err = i.api.patch(ctx, "/drives/"+driveID(n), driveUpdate{driveID(n), i.disk(n)})
	}
	if err != nil {
		return fmt.Errorf("resize disk %d to %d bytes: %w", n, size, err)
	}
	return nil
}
