// Package vm owns the virtual machines: what they are, their lifecycle, and the
// order in which the things that they need are acquired and given back.
//
//	          create            start             agent answers       pause
//	(none) ----------> stopped -------> starting ---------------> running <-------> paused
//	                    ^  ^               | fails                  |      resume     |
//	                    |  +---------------+                        | stop, kill, or  |
//	                    +----------------- stopping <---------------+ the VMM died ---+
//
//	running, paused --suspend--> suspending --> suspended --start--> starting
//	suspended --kill--> stopping
//	stopped --delete--> deleting --> (none)         any state: delete --force
//
// A start of a suspended VM that comes to nothing leaves it suspended, a suspend that
// does leaves it as it was.
//
// One goroutine owns each VM (owner.go) and is the only one to change it; slow
// work runs in a job beside it, which can be cancelled. Service (service.go) is
// what the server calls. What a VM is lies in its Record, durable; what is true of
// it for the moment is in memory and in the ledger, never in the Record.
package vm

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"time"

	"banger/api"
)

// Wanted is the state that a VM's user wants it in.
type Wanted string

// What may be wanted of a VM.
const (
	WantStopped   Wanted = "stopped"
	WantRunning   Wanted = "running"
	WantPaused    Wanted = "paused"
	WantSuspended Wanted = "suspended" // its snapshot is whole, and nobody has gone on from it
	WantDeleted   Wanted = "deleted"
)

// Record is what a VM is.
type Record struct {
	ID        string
	Name      string
	Owner     uint32
	UID       uint32 // of its VMM; 0 where it has none yet
	Image     string // name at the time of creation
	ImageID   string
	Kernel    string
	CPUs      int
	Memory    int64 // bytes
	RootDisk  api.RootDisk
	RootSize  int64 // bytes
	DiskSize  int64 // bytes of the work disk; 0 for none
	Network   api.Network
	NAT       bool
	IO        api.IO // of its disks
	VMM       api.VMM
	IP        netip.Addr // the zero Addr where it has none
	MAC       string
	Init      bool
	Ephemeral bool
	Wanted    Wanted
	Sync      string // secret of the serial channel's handshake
	MachineID string
	HostKey   string // ssh host key of the guest, OpenSSH private key, PEM
	Created   time.Time
	LastError string
}

// complete says that the record lacks nothing that a VM of this version has.
func (r Record) complete() bool {
	return r.HostKey != "" && r.UID != 0 && (r.Network != api.NetworkBridge || r.IP.IsValid() && r.MAC != "")
}

// Store keeps the records. Every method is a transaction that is durable when it
// returns.
type Store interface {
	InsertVM(context.Context, Record) error // already_exists where the name is taken
	// RestoreVM puts a record back that is lost, also one whose image or kernel is not
	// there; already_exists where its name is taken, conflict where its address is.
	RestoreVM(context.Context, Record) error
	UpdateVM(context.Context, Record) error // all that can change; already_exists where a new name is taken
	DeleteVM(ctx context.Context, id string) error
	VMs(context.Context) ([]Record, error)
	AddSSHKey(ctx context.Context, owner uint32, key string) error // one that is kept already is no error
	SSHKeys(ctx context.Context, owner uint32) ([]string, error)
}

// Assets finds the images and kernels that VMs are made of.
type Assets interface {
	// Image resolves a name as the user uid sees it.
	Image(ctx context.Context, uid uint32, name string) (id string, err error)
	// RunConfig says how the image called id is to be run; nothing where it is not there.
	RunConfig(ctx context.Context, id string) (api.ImageConfig, error)
	// Disks returns the paths of the layers of the image called id, lowest first.
	Disks(ctx context.Context, id string) ([]string, error)
	// Base says where the content of the image called id is, or is to be, as one file
	// system that can be written to.
	Base(ctx context.Context, id string) (Base, error)
	// Bases are all of them, as Base.File.
	Bases() ([]string, error)
	// ImageFree says why the user uid could make no image of a name, if so.
	ImageFree(ctx context.Context, uid uint32, name string) error
	// Stackable says whether a layer can be put on the image called id.
	Stackable(ctx context.Context, id string) (bool, error)
	// Commit makes an image of the user uid from a tar archive: a layer upon the image
	// called base, whose configuration it inherits, or if whole a root of its own.
	Commit(ctx context.Context, uid uint32, name, base string, whole bool, tar io.Reader, report api.Reporter) error
	// Kernel resolves the name of a kernel; the default for an empty one.
	Kernel(ctx context.Context, name string) (string, error)
	// Boot returns the files from which the kernel called name boots.
	Boot(ctx context.Context, name string) (Boot, error)
}

// Base is an image's content as one file system. Once it is there nobody changes it, and
// it stays for as long as its image, or VMs, need it.
type Base struct {
	File    string // below the state directory; empty while there is none
	Dir     string // below the state directory: where it is to be made
	Content int64  // bytes that it has to hold
	Entries int64  // files and directories, likewise
}

// Boot is the files of a kernel.
type Boot struct{ Vmlinux, Initramfs, Modules string }

var validName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

const (
	maxCPUs     = 32
	minMemory   = 64 << 20
	minDiskSize = 64 << 20
	maxDiskSize = 16 << 40
)

// validate checks what a user asks for, with the defaults filled in; what is what
// the request is about, for its errors.
func validate(what string, r api.CreateVM, hostMemory int64) error {
	bad := func(format string, args ...any) *api.Error {
		return api.Errorf(api.CodeInvalid, "%s: %s", what, fmt.Sprintf(format, args...))
	}
	size := func(n int64) bool { return n >= minDiskSize && n <= maxDiskSize }
	switch {
	case !validName.MatchString(r.Name):
		return bad("%q is not a valid name", r.Name).WithHint("use 1 to 63 of a-z, 0-9 and -, starting with a letter and not ending in -")
	case r.CPUs < 1 || r.CPUs > maxCPUs:
		return bad("%d CPUs", r.CPUs).WithHint("--cpus takes 1 to %d", maxCPUs)
	case r.Memory < minMemory:
		return bad("%d MiB of memory are too few", r.Memory>>20).WithHint("--memory takes %dM or more; a number without a unit is bytes", minMemory>>20)
	case r.Memory > hostMemory:
		return bad("%d MiB of memory are more than the host has (%d MiB)", r.Memory>>20, hostMemory>>20).
			WithHint("ask for less with --memory")
	case !size(r.RootSize):
		return bad("root size of %d MiB", r.RootSize>>20).WithHint("--root-size takes %dM to %dT", minDiskSize>>20, int64(maxDiskSize)>>40)
	case r.DiskSize != nil && *r.DiskSize != 0 && !size(*r.DiskSize):
		return bad("work disk of %d MiB", *r.DiskSize>>20).WithHint("--disk takes %dM to %dT, or 0 for none", minDiskSize>>20, int64(maxDiskSize)>>40)
	case r.RootDisk != api.RootDiskOverlay && r.RootDisk != api.RootDiskSnapshot:
		return bad("root disk %q", r.RootDisk).WithHint("--root-disk takes overlay or dm-snapshot")
	case !r.VMM.Known():
		return bad("VMM %q", r.VMM).WithHint("--vmm takes auto, firecracker or qemu")
	case r.IO != nil && (r.IO.ReadBPS < 0 || r.IO.WriteBPS < 0 || r.IO.ReadIOPS < 0 || r.IO.WriteIOPS < 0):
		return bad("a limit of its disks is negative").WithHint("--io takes numbers that are more than 0")
	case r.Network != api.NetworkBridge && r.Network != api.NetworkNone:
		return bad("network %q", r.Network).WithHint("--net takes bridge or none")
	}
	return nil
}

// Sizes are whole MiB: disks are rounded up, memory down.
func roundUp(n int64) int64   { return (n + 1<<20 - 1) &^ (1<<20 - 1) }
func roundDown(n int64) int64 { return n &^ (1<<20 - 1) }
