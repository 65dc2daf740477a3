package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/linux"
)

// checkKVM runs an ordinary guest for a moment.
func checkKVM(ctx context.Context) []api.Finding {
	const check = "kvm"
	err := linux.ProbeKVM(ctx)
	switch {
	case err == nil:
		return ok(groupVMM, check, "KVM runs guests at the speed of the hardware")
	case ctx.Err() != nil:
		return unknown(groupVMM, check, err)
	}
	f := found(groupVMM, check, api.SeverityWarning, "KVM does not serve: %v", err)
	const slow = "VMs are emulated, which works and takes about ten times as long."
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []api.Finding{advise(f, slow, "Switch virtualization on in the firmware, or nested virtualization where this host is a VM; then modprobe kvm-intel or kvm-amd.")}
	case errors.Is(err, fs.ErrPermission):
		return []api.Finding{advise(f, "Whether VMs have it is not known: the daemon, as root, may open it where you may not.", "sudo banger doctor")}
	}
	return []api.Finding{advise(f, slow, "Where this host is a VM: ask for nested virtualization by hardware.")}
}

// checkDrivers asks each VMM. One that serves is enough; that the best one does not is
// worth a word where the host could have it.
func (c Config) checkDrivers(ctx context.Context) []api.Finding {
	var out []api.Finding
	serves, all := "", true
	for _, d := range c.Drivers {
		info, err := d.Check(ctx)
		if err != nil {
			e := api.AsError(err)
			out = append(out, advise(found(groupVMM, d.Name(), api.SeverityError, "%s", e.Message), "VMs do not start by it.", e.Hint))
			all = false
			continue
		}
		f := found(groupVMM, d.Name(), api.SeverityOK, "%s %s, %s, runs VMs by %s; %s", d.Name(), info.Version, info.Binary, info.Accel, info.Reason)
		if info.Digest != "" {
			f.Message += "; its SHA-256 is " + info.Digest
		}
		out = append(out, f)
		if serves == "" {
			serves = d.Name()
		}
	}
	if serves == "" || all {
		return out
	}
	kvm := linux.ProbeKVM(ctx)
	for i := range out {
		f := &out[i]
		if f.Severity != api.SeverityError {
			continue
		}
		f.Severity, f.Meaning = api.SeverityWarning, "VMs are run by "+serves+"; those that ask for "+f.Check+" do not start."
		if f.Check == string(api.VMMFirecracker) && kvm != nil {
			f.Severity, f.Meaning, f.Advice = api.SeverityOK, "It would need KVM, which this host does not have for it. VMs are run by "+serves+".", ""
		}
	}
	return out
}

// device is a device or module that something needs.
type device struct {
	path, module string
	severity     api.Severity // where it is missing
	without      string       // what that means
}

var devices = []device{
	{"/dev/net/tun", "tun", api.SeverityError, "VMs have no network; those with --net none start."},
	{"", "bridge", api.SeverityError, "VMs have no network; those with --net none start."},
	{"", "nf_tables", api.SeverityError, "VMs have no network; those with --net none start."},
	{"/dev/loop-control", "loop", api.SeverityWarning, "Root disks by dm-snapshot cannot be had; those by overlay, the default, need nothing of it."},
	{"/dev/mapper/control", "dm_snapshot", api.SeverityWarning, "Root disks by dm-snapshot cannot be had; those by overlay, the default, need nothing of it."},
	{"/dev/vhost-vsock", "vhost_vsock", api.SeverityOK, "Agents are reached by a serial line instead, which every VMM has."},
}

// checkDevices looks for what the kernel has to have. A module that can be loaded is as
// good as one that is: the kernel loads it when it is needed.
func checkDevices(context.Context) []api.Finding {
	var out []api.Finding
	for _, d := range devices {
		name := d.module
		if d.path != "" {
			name = d.path + " (" + d.module + ")"
		}
		state, err := linux.ModuleOf(d.module)
		if err != nil {
			out = append(out, unknown(groupHost, "kernel."+d.module, err)...)
			continue
		}
		_, there := os.Stat(d.path)
		switch {
		case d.module == "dm_snapshot" && there == nil && linux.DeviceMapper{}.Supports("snapshot") == nil,
			d.module != "dm_snapshot" && d.path != "" && there == nil, d.path == "" && state == linux.ModuleLoaded:
			out = append(out, found(groupHost, "kernel."+d.module, api.SeverityOK, "the kernel has %s", name))
		case works(d.module):
			out = append(out, found(groupHost, "kernel."+d.module, api.SeverityOK, "the kernel has %s", name))
		case state == linux.ModuleAvailable:
			out = append(out, found(groupHost, "kernel."+d.module, api.SeverityOK, "the kernel can load %s", name))
		case state == linux.ModuleUnknown && d.path == "":
			out = append(out, found(groupHost, "kernel."+d.module, api.SeverityOK, "whether the kernel has %s is not known: its list of modules is not installed", name))
		default:
			f := found(groupHost, "kernel."+d.module, d.severity, "the kernel has no %s", name)
			f.Meaning = d.without
			if d.severity != api.SeverityOK {
				f.Advice = "Boot a kernel of the distribution's, which has the module " + d.module + "."
			}
			out = append(out, f)
		}
	}
	return out
}

// works asks the kernel for what is built in without a word of it in /sys/module.
func works(module string) bool {
	if module == "nf_tables" {
		_, err := linux.NftNames("")
		return err == nil || errors.Is(err, fs.ErrPermission)
	}
	return false
}

// limits are the controllers by which VMs are limited.
var limits = []string{"cpu", "io", "memory", "pids"}

func checkCgroups(context.Context) []api.Finding {
	const check = "cgroups"
	root, err := linux.CgroupRoot()
	if err != nil {
		f := found(groupHost, check, api.SeverityError, "%v", err)
		return []api.Finding{advise(f, "The daemon does not start: a VMM is held and ended by its cgroup.", "mount -t cgroup2 none /sys/fs/cgroup")}
	}
	has, err := linux.CgroupControllers(root)
	if err != nil {
		return unknown(groupHost, check, err)
	}
	missing := slices.DeleteFunc(slices.Clone(limits), func(c string) bool { return slices.Contains(has, c) })
	if len(missing) == 0 {
		return ok(groupHost, check, "cgroup v2 at %s has the controllers %s", root, strings.Join(limits, ", "))
	}
	f := found(groupHost, check, api.SeverityWarning, "cgroup v2 at %s has no controllers %s: a hybrid hierarchy", root, strings.Join(missing, ", "))
	return []api.Finding{advise(f, "VMMs are held together and ended by their cgroups, but what a VM takes of these is not limited.",
		"Boot with systemd.unified_cgroup_hierarchy=1, or unmount the v1 hierarchies.")}
}

// tool is a program that something needs.
type tool struct {
	names    []string // any of them
	severity api.Severity
	without  string
	pkg      string
}

var tools = []tool{
	{[]string{"mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"}, api.SeverityError, "VMs cannot be made: their disks are made by it.", "e2fsprogs"},
	{[]string{"mmdebstrap"}, api.SeverityWarning, "banger image bootstrap does not work; banger image import does.", "mmdebstrap"},
	{[]string{"apt-get"}, api.SeverityWarning, "banger kernel pull does not work; banger kernel import does.", "apt"},
	{[]string{"depmod", "/usr/sbin/depmod", "/sbin/depmod"}, api.SeverityWarning, "Kernels can be neither pulled nor imported.", "kmod"},
	{[]string{"ssh"}, api.SeverityWarning, "banger vm ssh does not work; banger vm exec does.", "openssh-client"},
}

func checkTools(context.Context) []api.Finding {
	var missing []api.Finding
	for _, t := range tools {
		if !slices.ContainsFunc(t.names, func(name string) bool { _, err := exec.LookPath(name); return err == nil }) {
			f := found(groupHost, "tools."+t.names[0], t.severity, "the program %s is not installed", t.names[0])
			missing = append(missing, advise(f, t.without, "apt-get install "+t.pkg))
		}
	}
	if len(missing) == 0 {
		return ok(groupHost, "tools", "all programs that are called are installed")
	}
	return missing
}
