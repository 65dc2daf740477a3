// Package vmm declares what banger wants of a virtual machine monitor: the
// Driver contract, which each subpackage implements for one VMM program, and
// the description of a machine in terms that every VMM understands.
//
// Drivers know processes, disks and sockets, never VMs: package vm acquires
// everything that a Machine names before a driver sees it, and gives it back
// after. The conformance suite in vmmtest holds for every driver.
package vmm

import (
	"context"
	"net"
	"time"
)

// Machine describes a machine to start, in things that exist already. All paths
// are absolute. Its VMM is confined: it runs as a user of its own without
// capabilities, and sees of the host its program, the kernel, the initrd and what it is
// handed as open files. All files but these two stay as they are, root's alone.
type Machine struct {
	ID      string // names the machine in the VMM's own messages
	UID     uint32 // of the VMM, and its only group; no other VMM's, and not root's
	CPUs    int
	Memory  int64  // bytes, a multiple of 1 MiB
	Kernel  string // an uncompressed ELF vmlinux; made readable for everybody, from whom its directory keeps it
	Initrd  string // likewise
	Cmdline string // what the guest is to be told; the driver adds what its devices and its accelerator need
	Disks   []Disk // in this order they are /dev/vda, /dev/vdb, ... in the guest
	NIC     *NIC   // nil for a machine without network
	Console string // the file to which the first serial port is appended; like each file of the VMM's it cannot grow beyond 1 GiB, or the size of its largest disk
	Log     string // the file to which the VMM's own messages are appended
	RunDir  string // an empty directory of this run's, for the driver's sockets; the VMM cannot write to it
	Cgroup  string // the directory of an empty cgroup (v2) in which the VMM is to be born
}

// Disk is a raw disk image.
type Disk struct {
	Path     string
	ReadOnly bool
	Block    bool   // a block device, not a file
	File     string // of a block device that can be written to: the file that changes with it; see Describe
}

// NIC is a network interface.
type NIC struct {
	Tap string // name of the host's end, a tap device that is up and that nobody has open
	MAC string
}

// Info says what a driver would run, and how.
type Info struct {
	Binary  string // path of the VMM program
	Version string
	Digest  string // SHA-256 of the program, in hexadecimal; empty where it comes from the distribution
	Accel   string // "kvm" or "tcg"
	Reason  string // why this accelerator, for people

	// Overhead is the memory, in bytes, that a VMM of no CPUs and no memory needs at
	// most; see LimitsFor.
	Overhead int64
}

// Driver drives one VMM program. Its methods may be called concurrently, for
// different machines.
type Driver interface {
	// Name is what users call it: "qemu", "firecracker".
	Name() string

	// Check finds out whether machines can be started here. Its error (code
	// unavailable or unsupported) says what is missing and where to get it.
	// It may be slow the first time and is cheap from then on.
	Check(context.Context) (Info, error)

	// Start starts a machine. It returns when the VMM has accepted the machine
	// and runs it, not when the guest is ready. On an error no process is left.
	// Cancelling the context after Start has returned has no effect.
	Start(context.Context, Machine) (Instance, error)

	// Attach takes up a machine that an earlier run of the daemon started with
	// the same description. The VMM's process is found in the machine's cgroup
	// and its sockets in the run directory. An error means that there is no
	// process, or none that has got as far as to its sockets. One that stands
	// still lives, paused or not. Only ID, UID, Memory, Log, Disks, RunDir and Cgroup
	// of the description count, and Disks only for what is done with them.
	Attach(context.Context, Machine) (Instance, error)

	// Restore starts a VMM with the state that Instance.Snapshot left in dir. The
	// machine is paused; Resume has it go on where it stood. Its description is that
	// from which the snapshot was taken, with disks whose content is the same; only UID,
	// Console, Log, RunDir, Cgroup and the tap may be others. Whether that is so is the
	// caller's affair: see Snapshot. It returns when nothing of dir is missing or
	// damaged, as far as the driver can tell before the machine runs. The files stay as
	// they are, and may be unlinked once it has returned. On an error no process is
	// left, and dir may be tried again. The context is as for Start.
	Restore(ctx context.Context, m Machine, dir string) (Instance, error)
}

// Instance is a running machine. It outlives the daemon: only the end of its
// VMM ends it. To kill it is not the driver's affair but that of whoever owns
// the cgroup.
type Instance interface {
	// PID is the VMM's process id.
	PID() int

	// Dial opens the host's end of the raw channel to the agent.
	// See Channel for what it gives.
	Dial(context.Context) (net.Conn, error)

	// Channel says what kind of channel Dial opens.
	Channel() Channel

	// PowerButton presses the power button, which a guest may obey or not.
	// Drivers that have none return an error with code unsupported.
	PowerButton(context.Context) error

	// ResizeDisk tells the machine that the file behind its disk number i, which
	// has grown already, has size bytes now.
	ResizeDisk(ctx context.Context, i int, size int64) error

	// Pause has the machine's CPUs stand still, with what it has to write handed to the
	// host; its time stands still too. One that is paused stays so.
	Pause(context.Context) error

	// Resume has a paused machine go on, also after a Snapshot, whatever became of that.
	// One that runs goes on.
	Resume(context.Context) error

	// Snapshot writes what a paused machine is, its memory included, to files in dir, an
	// empty directory that is root's alone. When it returns they are durable; memory that the guest
	// does not use takes no room. The disks are not part of it. The machine stays
	// paused: it is ended by whoever owns its cgroup, or goes on. Where the context
	// ends, and after an error, files may be left that are of no use.
	Snapshot(ctx context.Context, dir string) error

	// Exited is closed when the VMM has ended.
	Exited() <-chan struct{}

	// Exit says how it ended. Valid once Exited is closed.
	Exit() Exit

	// Close lets go of the machine, which runs on.
	Close() error
}

// Channel is a kind of connection between host and agent.
type Channel string

const (
	// ChannelSerial is one byte stream for the machine's life, over which
	// connections are multiplexed. A new Dial takes it over; bytes that belong
	// to the former one may still arrive, in both directions.
	ChannelSerial Channel = "serial"
	// ChannelStream gives a connection to the agent for each Dial (vsock).
	ChannelStream Channel = "stream"
)

// Exit says how a VMM ended.
type Exit struct {
	Known  bool   // false for a VMM that this daemon did not start
	Code   int    // exit status, if it exited
	Signal string // name of the signal that killed it, else empty
	At     time.Time
	Log    string // the last lines of the VMM's own messages, at most 4 KiB
}
