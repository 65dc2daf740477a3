package api

import "time"

// DiskUsage says what an installation takes of the disk: bytes of the blocks that its
// files have, each file counted once.
type DiskUsage struct {
	Images  []ImageUsage  `json:"images" doc:"Those that the caller may use."`
	Layers  []LayerUsage  `json:"layers" doc:"The disks that these images share, and for root those that no image has any more."`
	VMs     []VMUsage     `json:"vms" doc:"Those that the caller sees."`
	Kernels []KernelUsage `json:"kernels" doc:"All of them."`
	Caches  []FileUsage   `json:"caches" doc:"What is made again when it is needed. Root only."`
	Lost    []FileUsage   `json:"lost" doc:"What was set aside when the database that knew of it was lost or damaged. Root only."`
	Other   int64         `json:"other" doc:"Bytes of the database, the daemon's logs and all else in the state directory; 0 for users other than root."`
	Total   int64         `json:"total" doc:"Bytes of all that is listed here, layers that images share counted once."`

	Size      int64 `json:"size" doc:"Bytes of the file system of the state directory."`
	Available int64 `json:"available" doc:"Bytes that can still be written there."`
	Reserve   int64 `json:"reserve" doc:"Of these, what is kept free: nothing is made for which less would stay."`
}

// ImageUsage is what an image takes.
type ImageUsage struct {
	Name   string `json:"name" doc:"Unique among its owner's images."`
	Owner  uint32 `json:"owner" doc:"Uid of the user whose image this is."`
	ID     string `json:"id" doc:"Digest of what it consists of."`
	Size   int64  `json:"size" doc:"Bytes of its layers."`
	Shared int64  `json:"shared" doc:"Of these, bytes of layers that other images have too."`
	Used   bool   `json:"used" doc:"Whether VMs are made of it."`
}

// LayerUsage is what a layer takes.
type LayerUsage struct {
	Digest string   `json:"digest" doc:"sha256:..., of the uncompressed tar; empty for one that no image has any more."`
	Dir    string   `json:"dir" doc:"Where it is, relative to the state directory."`
	Size   int64    `json:"size" doc:"Bytes."`
	Images []string `json:"images" doc:"Names of the images that have it, among those that the caller may use; those of others as NAME@UID."`
	Used   bool     `json:"used" doc:"Whether there are VMs of an image that has it."`
}

// VMUsage is what a VM takes.
type VMUsage struct {
	ID    string  `json:"id" doc:"Identity of the VM."`
	Name  string  `json:"name" doc:"Name of the VM."`
	Owner uint32  `json:"owner" doc:"Uid of the user whose VM this is."`
	State VMState `json:"state" doc:"Where it is in its lifecycle." enum:"stopped,starting,running,paused,suspending,suspended,stopping,deleting"`
	Root  int64   `json:"root" doc:"Bytes of what it has written to its root."`
	Work  int64   `json:"work" doc:"Bytes of its work disk."`
	Saved int64   `json:"saved" doc:"Bytes of its memory on the disk, where it is suspended."`
	Logs  int64   `json:"logs" doc:"Bytes of its console, of its VMM's messages and of what else is in its directory."`
	Size  int64   `json:"size" doc:"Bytes of all of it."`
}

// KernelUsage is what a kernel takes.
type KernelUsage struct {
	Name    string `json:"name" doc:"Name of the kernel."`
	Default bool   `json:"default" doc:"Taken by VMs that name none."`
	Size    int64  `json:"size" doc:"Bytes."`
	Stale   int64  `json:"stale" doc:"Of these, bytes of initramfs that carry another version's agent."`
	Used    bool   `json:"used" doc:"Whether VMs boot it."`
}

// FileUsage is what a file or directory of the state directory takes.
type FileUsage struct {
	Name    string    `json:"name" doc:"Path, relative to the state directory."`
	Size    int64     `json:"size" doc:"Bytes."`
	Changed time.Time `json:"changed" doc:"When it was last changed."`
}

// Prune asks for what nobody needs to be removed: layers that no image has, caches,
// and initramfs of other versions, all of which are root's to remove.
type Prune struct {
	All    bool `json:"all,omitempty" doc:"Remove as well the caller's images of which there is no VM; for root all of those, and kernels that no VM boots, except the default one."`
	Lost   bool `json:"lost,omitempty" doc:"Remove as well what was set aside when a database was lost or damaged; disks of users may be in it. Root only."`
	DryRun bool `json:"dry_run,omitempty" doc:"Only say what would be removed."`
}

// Pruned is what was removed, or would be.
type Pruned struct {
	Items []PrunedItem `json:"items" doc:"Each thing that was removed, or was not because of its error."`
	Size  int64        `json:"size" doc:"Bytes that the things without error took."`
}

// PrunedItem is a thing that nobody needed.
type PrunedItem struct {
	Kind  string `json:"kind" enum:"image,layer,kernel,initramfs,cache,lost" doc:"What it was."`
	Name  string `json:"name" doc:"Its name, or its path relative to the state directory."`
	Size  int64  `json:"size" doc:"Bytes; of an image, those of layers that no other image has, unless these are removed too."`
	Error *Error `json:"error,omitempty" doc:"Why it was not removed."`
}
