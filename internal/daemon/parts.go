package daemon

import (
	"slices"

	"banger/api"
	"banger/internal/config"
	"banger/internal/disk"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/resource"
	"banger/internal/vm"
	"banger/internal/vmm"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/qemu"
)

// parts are the sorts of things that an installation has on the host.
type parts struct {
	dirs, runDirs *resource.Dir
	uppers, works *disk.Disks
	bases, cows   *disk.Disks
	mapper        linux.DeviceMapper
	cgroups       *vmm.Cgroups
	kinds         []resource.Kind // all of them, what uses others after these
}

// newParts makes nothing and changes nothing.
func newParts(paths config.Paths, installation string) (parts, error) {
	cgroups, err := vmm.NewCgroups(installation)
	if err != nil {
		return parts{}, api.Errorf(api.CodeUnsupported, "find the cgroup v2 hierarchy: %w", err).
			WithHint("mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	p := parts{
		dirs:    resource.NewDir(vm.KindDir, paths.State, false, "vms", "layers", "kernels"),
		runDirs: resource.NewDir(vm.KindRunDir, paths.Run, true, "vm"),
		uppers:  disk.New(disk.KindUpper, paths.State), works: disk.New(disk.KindWork, paths.State),
		bases: disk.New(disk.KindBase, paths.State), cows: disk.New(disk.KindCow, paths.State),
		cgroups: cgroups,
	}
	p.kinds = slices.Concat(
		[]resource.Kind{p.dirs, resource.NewDir(vm.KindSuspended, paths.State, false, vm.SuspendedDir), p.uppers, p.works, p.bases, p.cows}, disk.SnapshotKinds(installation, paths.State, p.mapper),
		network.Kinds(installation), []resource.Kind{p.runDirs, cgroups}) // VMMs use all of the others
	return p, nil
}

// engines are the drivers of VMMs, the preferred one first.
func engines(cfg config.Config) vmm.Engines {
	f := cfg.Firecracker
	return vmm.Engines{
		firecracker.New(firecracker.Options{
			Binary: f.Binary, Jailer: f.Jailer, NoJail: !f.Jail, HugePages: f.HugePages, AsyncIO: f.AsyncIO,
			Disk:    firecracker.Rate{Bytes: int64(f.DiskBandwidth), Ops: f.DiskOps},
			Network: firecracker.Rate{Bytes: int64(f.NetBandwidth), Ops: f.NetOps},
		}),
		qemu.New(cfg.QEMU.Binary),
	}
}
