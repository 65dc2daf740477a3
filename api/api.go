// Package api holds what daemon and clients share: the types that travel over
// the socket, the error codes, and (in stream.go) the frames of an exec session.
// It imports nothing of banger's own.
package api

import "time"

// Version is the version of the HTTP API, the first element of every path.
const Version = "v1"

// VMState is where a VM is in its lifecycle.
type VMState string

// The states of a VM. See package vm for the drawing.
const (
	VMStopped    VMState = "stopped"
	VMStarting   VMState = "starting"
	VMRunning    VMState = "running"
	VMPaused     VMState = "paused"
	VMSuspending VMState = "suspending"
	VMSuspended  VMState = "suspended"
	VMStopping   VMState = "stopping"
	VMDeleting   VMState = "deleting"
)

// VM is a virtual machine: what it is (durable) and what is true of it now.
type VM struct {
	ID        string     `json:"id" doc:"Random identity, 12 hexadecimal digits." match:"^[0-9a-f]{12}$"`
	Name      string     `json:"name" doc:"Unique in the installation." match:"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"`
	Owner     uint32     `json:"owner" doc:"Uid of the user whose VM this is."`
	State     VMState    `json:"state" doc:"Where it is in its lifecycle." enum:"stopped,starting,running,paused,suspending,suspended,stopping,deleting"`
	Image     string     `json:"image" doc:"Name of the image at the time of creation."`
	ImageID   string     `json:"image_id" doc:"Digest of the image, which stays that of the VM when the name comes to mean another."`
	Kernel    string     `json:"kernel" doc:"Name of the kernel bundle."`
	CPUs      int        `json:"cpus" doc:"Number of virtual CPUs."`
	Memory    int64      `json:"memory" doc:"Bytes."`
	RootDisk  RootDisk   `json:"root_disk" enum:"overlay,dm-snapshot" doc:"How its root is made: an overlay over the image's layers, or one block device, a snapshot by device-mapper."`
	RootSize  int64      `json:"root_size" doc:"Bytes that the root file system can hold beyond the image; with dm-snapshot the image is included."`
	DiskSize  int64      `json:"disk_size" doc:"Bytes of the work disk, which is mounted at /root and outlives the root; 0 where there is none."`
	Network   Network    `json:"network" enum:"bridge,none" doc:"How it is on the network: by a port of the installation's bridge, or not at all."`
	NAT       bool       `json:"nat" doc:"Whether it may reach what is beyond the host."`
	IO        IO         `json:"io" doc:"What its disks may do by the second."`
	IP        string     `json:"ip,omitempty" doc:"Its IPv4 address, where it is on the network."`
	MAC       string     `json:"mac,omitempty" doc:"Its Ethernet address, where it is on the network."`
	Init      bool       `json:"init" doc:"Process 1 is the image's own init instead of the agent."`
	Command   []string   `json:"command,omitempty" doc:"The image's own command: its entrypoint and its arguments."`
	Ports     []string   `json:"ports,omitempty" doc:"The ports that the image exposes, e.g. 80/tcp."`
	Health    *Health    `json:"health,omitempty" doc:"What the image's health check has found, while it runs."`
	Ephemeral bool       `json:"ephemeral" doc:"Deleted when its lease ends (vm run --rm)."`
	VMM       VMM        `json:"vmm" enum:"auto,firecracker,qemu" doc:"Which VMM is to run it; auto takes the best one that serves on the host at each start."`
	Engine    string     `json:"engine,omitempty" doc:"The VMM and its accelerator, e.g. firecracker/kvm; while it runs."`
	EngineWhy string     `json:"engine_why,omitempty" doc:"Why that VMM was chosen; while it runs."`
	PID       int        `json:"pid,omitempty" doc:"Process id of the VMM, while it runs."`
	Agent     string     `json:"agent,omitempty" doc:"Build of the agent that it was started with, while it runs."`
	Created   time.Time  `json:"created" doc:"When it was made."`
	Started   *time.Time `json:"started,omitempty" doc:"When it was last started, while it runs."`
	Steps     []Step     `json:"steps,omitempty" doc:"How long each step of the last start took, while it runs and the daemon that started it does."`
	Pending   []string   `json:"pending,omitempty" doc:"What was changed and takes effect at the next start, e.g. memory; agent, where it runs that of another version of banger."`
	LastError string     `json:"last_error,omitempty" doc:"Why it is not running although it should be, or why its last operation came to nothing."`
}

// Network says how a VM is on the network.
type Network string

// The networks.
const (
	NetworkBridge Network = "bridge"
	NetworkNone   Network = "none"
)

// VMM says what program runs a VM.
type VMM string

// The VMMs.
const (
	VMMAuto        VMM = "auto" // the best one that serves
	VMMFirecracker VMM = "firecracker"
	VMMQEMU        VMM = "qemu"
)

// Known says whether there is such a VMM.
func (v VMM) Known() bool { return v == VMMAuto || v == VMMFirecracker || v == VMMQEMU }

// RootDisk says how a VM's root is made.
type RootDisk string

// The ways to make a root.
const (
	RootDiskOverlay  RootDisk = "overlay"
	RootDiskSnapshot RootDisk = "dm-snapshot"
)

// CreateVM asks for a new VM. Zero values take the configured defaults.
type CreateVM struct {
	Name      string   `json:"name,omitempty" doc:"1 to 63 of a-z, 0-9 and -, starting with a letter and not ending in -; a random one where it is empty." match:"^([a-z]([a-z0-9-]{0,61}[a-z0-9])?)?$"`
	Image     string   `json:"image,omitempty" doc:"Name of an image that the caller may use."`
	Kernel    string   `json:"kernel,omitempty" doc:"Name of a kernel."`
	CPUs      int      `json:"cpus,omitempty" doc:"Number of virtual CPUs." min:"0" max:"32"`
	Memory    int64    `json:"memory,omitempty" doc:"Bytes, at least 64 MiB and not more than the host has; whole MiB, rounded down." min:"0"`
	RootDisk  RootDisk `json:"root_disk,omitempty" enum:"overlay,dm-snapshot" doc:"How its root is to be made; dm-snapshot needs device-mapper in the host's kernel."`
	RootSize  int64    `json:"root_size,omitempty" doc:"Bytes that the root file system can hold beyond the image, at least 64 MiB; with dm-snapshot the image is included. Whole MiB, rounded up." min:"0" max:"17592186044416"`
	DiskSize  *int64   `json:"disk_size,omitempty" doc:"Bytes of the work disk, at least 64 MiB; 0 for none." min:"0" max:"17592186044416"`
	Network   Network  `json:"network,omitempty" enum:"bridge,none" doc:"How it is to be on the network."`
	NAT       *bool    `json:"nat,omitempty" doc:"Whether it may reach what is beyond the host."`
	IO        *IO      `json:"io,omitempty" doc:"What its disks may do by the second; unsupported where the host's cgroups cannot limit it."`
	VMM       VMM      `json:"vmm,omitempty" enum:"auto,firecracker,qemu" doc:"Which VMM is to run it; auto takes the best one that serves on the host at each start."`
	Init      bool     `json:"init,omitempty" doc:"Boot the image's own init (systemd, openrc) as process 1."`
	Start     bool     `json:"start,omitempty" doc:"Start it as well; should that not succeed, the VM is removed again."`
	Ephemeral bool     `json:"ephemeral,omitempty" doc:"Delete it when no lease on it has been held for a few seconds."`
}

// Step is a step of a start: disk, engine, cgroup, process, kernel, agent.
type Step struct {
	Name    string  `json:"name" doc:"Which one."`
	Seconds float64 `json:"seconds" doc:"How long it took."`
}

// SetVM asks for changes to a VM; what is absent stays as it is.
type SetVM struct {
	Name     *string `json:"name,omitempty" doc:"A new name, as in CreateVM." match:"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"`
	CPUs     *int    `json:"cpus,omitempty" doc:"Takes effect at the next start." min:"1" max:"32"`
	Kernel   *string `json:"kernel,omitempty" doc:"Name of a kernel; only while it is stopped."`
	Memory   *int64  `json:"memory,omitempty" doc:"Bytes; takes effect at the next start." min:"67108864"`
	RootSize *int64  `json:"root_size,omitempty" doc:"Bytes, not less than before; at once, also while it runs." min:"67108864" max:"17592186044416"`
	DiskSize *int64  `json:"disk_size,omitempty" doc:"Bytes, not less than before; at once, also while it runs, if there is a work disk already." min:"0" max:"17592186044416"`
	NAT      *bool   `json:"nat,omitempty" doc:"At once, also while it runs."`
	VMM      *VMM    `json:"vmm,omitempty" enum:"auto,firecracker,qemu" doc:"Takes effect at the next start."`
	IO       *IO     `json:"io,omitempty" doc:"All limits of its disks anew, at once, also while it runs."`
}

// PromoteVM asks for an image made of a VM's root.
type PromoteVM struct {
	Image string `json:"image" doc:"Name of the new image." match:"^[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"`
}

// PullImage asks for an image from a registry.
type PullImage struct {
	Ref  string        `json:"ref" doc:"What to pull, such as python:3, ghcr.io/owner/name:tag or name@sha256:... ." match:"^[!-~]{1,512}$"`
	Arch string        `json:"arch,omitempty" doc:"Machine that the image is to be for, as Go calls it; that of the host where it is empty." match:"^[a-z0-9]{0,16}$"`
	Auth *RegistryAuth `json:"auth,omitempty" doc:"Who the caller is to the registry. It is used for this pull and not kept."`
}

// RegistryAuth is how one logs in to a registry: by name and password, or by a token.
type RegistryAuth struct {
	Username      string `json:"username,omitempty" doc:"Name."`
	Password      string `json:"password,omitempty" doc:"Password."`
	IdentityToken string `json:"identity_token,omitempty" doc:"For which the registry gives access tokens."`
	RegistryToken string `json:"registry_token,omitempty" doc:"An access token."`
}

// StartVM asks a VM to start.
type StartVM struct {
	Cold bool `json:"cold,omitempty" doc:"Boot one that is suspended, as if it had lost its power: what was in its memory is dropped."`
}

// StopVM asks a VM to stop.
type StopVM struct {
	Timeout float64 `json:"timeout,omitempty" doc:"Seconds that the guest is given before it is killed; the default where it is 0." min:"0" max:"86400"`
	Reason  string  `json:"reason,omitempty" doc:"Why, where that is not its user's wish: the VM's last_error tells it." match:"^[ -~]{0,200}$"`
}

// OperationStatus says whether an operation is under way and how it ended.
type OperationStatus string

// The states of an operation.
const (
	OperationRunning   OperationStatus = "running"
	OperationSucceeded OperationStatus = "succeeded"
	OperationFailed    OperationStatus = "failed"
	OperationCancelled OperationStatus = "cancelled"
)

// Operation is a request that takes longer than an answer should. It lives in
// the daemon's memory for some minutes after its end.
type Operation struct {
	ID       string          `json:"id" doc:"Random identity." match:"^[0-9a-f]{16}$"`
	Kind     string          `json:"kind" doc:"What is being done, e.g. vm.create."`
	Target   string          `json:"target" doc:"The id or name of the object that it is done to."`
	Owner    uint32          `json:"owner" doc:"Uid of the user who asked for it."`
	Status   OperationStatus `json:"status" doc:"Whether it is under way, and how it ended." enum:"running,succeeded,failed,cancelled"`
	Progress Progress        `json:"progress" doc:"What it was doing last."`
	Error    *Error          `json:"error,omitempty" doc:"Why it did not succeed."`
	Result   string          `json:"result,omitempty" doc:"Name of what was made, where Target does not say it."`
	Created  time.Time       `json:"created" doc:"When it was begun."`
	Finished *time.Time      `json:"finished,omitempty" doc:"When it ended."`
}

// Progress says what an operation is doing. It is the payload of the events of
// GET /v1/operations/{id}/events too, which end with an event "done" that
// carries the Operation.
type Progress struct {
	Step    string `json:"step,omitempty" doc:"What is being done, for people, e.g. boot."`
	Current int64  `json:"current,omitempty" doc:"How much of it is done; bytes, unless Unit says otherwise."`
	Total   int64  `json:"total,omitempty" doc:"How much there is to do; 0 where that is not known."`
	Unit    string `json:"unit,omitempty" doc:"What Current and Total count, where that is not bytes."`
	Parts   []Part `json:"parts,omitempty" doc:"How far each of several things is that go on at the same time, as the layers of an image."`
}

// Part is one of the things that an operation does at the same time.
type Part struct {
	Name    string `json:"name" doc:"What it is, for people, e.g. the beginning of a layer's digest."`
	Step    string `json:"step" doc:"What is being done with it, for people."`
	Current int64  `json:"current,omitempty" doc:"How many bytes of it are done."`
	Total   int64  `json:"total,omitempty" doc:"How many bytes there are to do; 0 where that is not known."`
}

// Reporter takes progress. It may be called often, from any goroutine, and must
// not block.
type Reporter func(Progress)

// Image is a root file system from which VMs are made.
type Image struct {
	ID      string    `json:"id" doc:"Digest, sha256:..., of what the image consists of."`
	Name    string    `json:"name" doc:"Unique among its owner's images."`
	Owner   uint32    `json:"owner" doc:"Uid of the user whose image this is; everybody may use root's."`
	Created time.Time `json:"created" doc:"When it was made here."`
	Layers  []Layer   `json:"layers" doc:"Its read-only disks, lowest first."`
	Size    int64     `json:"size" doc:"Bytes that its layers take on the disk."`
	Entries int64     `json:"entries" doc:"Number of files, directories and other entries in it."`
	Source  string    `json:"source,omitempty" doc:"The repository that it was pulled from; empty for what was made here."`
	Digest  string    `json:"digest,omitempty" doc:"Digest of the manifest that it came with, sha256:..., by which the registry knows it."`

	Platform string      `json:"platform" doc:"The machine that it is for, e.g. linux/amd64; linux/ where it does not say."`
	Config   ImageConfig `json:"config" doc:"How it is to be run."`
}

// Layer is one read-only disk of an image.
type Layer struct {
	Digest string `json:"digest" doc:"sha256:..., of the uncompressed tar that it was made from."`
	Size   int64  `json:"size" doc:"Bytes on the disk."`
}

// Kernel is a bundle of a kernel, its modules and what an initramfs needs.
type Kernel struct {
	Name    string    `json:"name" doc:"Unique in the installation."`
	Release string    `json:"release" doc:"As uname -r says it."`
	Source  string    `json:"source" doc:"Where it came from: a package with its version, or the name of a file."`
	Default bool      `json:"default" doc:"Taken by VMs that name none."`
	Created time.Time `json:"created" doc:"When it was made here."`
	Size    int64     `json:"size" doc:"Bytes on the disk."`
	VMs     []string  `json:"vms" doc:"Names of the VMs that boot it, those that the caller sees."`
}

// KernelOffer is what the host's package manager offers.
type KernelOffer struct {
	Package string `json:"package" doc:"Name of the package."`
	Release string `json:"release" doc:"As uname -r would say it."`
	Version string `json:"version" doc:"Version of the package; a rebuilt one has the same release."`
	Kernel  string `json:"kernel,omitempty" doc:"The kernel that was made of it; empty where it is not there yet."`
}

// System describes a daemon.
type System struct {
	Version      string    `json:"version" doc:"Version of the daemon."`
	Installation string    `json:"installation" doc:"Short id of the installation; every kernel object of ours carries it."`
	PID          int       `json:"pid" doc:"Process id of the daemon."`
	Started      time.Time `json:"started" doc:"When the daemon was started."`
	StateDir     string    `json:"state_dir" doc:"Where it keeps what is durable."`
	RunDir       string    `json:"run_dir" doc:"Where its socket and those of its VMs are."`
}
