package qemu

import (
	"fmt"

	"banger/internal/vmm"
)

// Names of the sockets in a machine's run directory.
const (
	agentSocket = "agent.sock"
	qmpSocket   = "qmp.sock"
)

// The descriptors by which QEMU has its files, the first ones after the standard ones
// (exec.Cmd.ExtraFiles): the sockets at which it listens, the console, the disks in
// their order, and after the last one the tap.
const (
	agentFD = iota + 3
	monitorFD
	consoleFD
	diskFD
)

// serialPort is the name by which the agent finds its virtio-serial port.
const serialPort = "banger.agent"

// args is QEMU's command line for a machine. The machine type microvm has no PCI
// and no legacy devices; a Debian kernel finds its virtio-mmio devices by ACPI, and
// under TCG needs to be told the TSC's rate, since microvm has no timer to
// calibrate it against.
func args(m vmm.Machine, accel string, tscKHz int64) []string {
	cmdline := "console=ttyS0 quiet reboot=t panic=-1 cryptomgr.notests mitigations=off random.trust_cpu=on"
	cpu := "host"
	if accel == "tcg" {
		// A kernel that is told of fast string instructions copies byte by byte, each of
		// which is emulated: without, it boots a quarter of a second sooner.
		cpu = "max,erms=off,fsrm=off"
		if tscKHz > 0 {
			cmdline += fmt.Sprintf(" tsc_early_khz=%d tsc=reliable", tscKHz)
		}
	}
	a := []string{
		"-name", "banger-" + m.ID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-M", "microvm,x-option-roms=off,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on",
		"-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprintf("%dM", m.Memory>>20), "-smp", fmt.Sprint(m.CPUs),
		"-kernel", m.Kernel, "-initrd", m.Initrd, "-append", cmdline + " " + m.Cmdline,
		"-global", "virtio-mmio.force-legacy=false",
		"-add-fd", fdset(consoleFD), "-chardev", "file,id=console,append=on,path=" + inFdset(consoleFD), "-serial", "chardev:console",
		"-device", "virtio-serial-device",
		"-chardev", fmt.Sprintf("socket,id=agent,server=on,wait=off,fd=%d", agentFD),
		"-device", "virtserialport,chardev=agent,name=" + serialPort,
		"-device", "virtio-rng-device",
		"-chardev", fmt.Sprintf("socket,id=monitor,server=on,wait=off,fd=%d", monitorFD), "-mon", "chardev=monitor,mode=control",
	}
	for i, d := range m.Disks {
		file := "file="
		if d.Block {
			file = "file.driver=host_device,file.filename=" // which it does not find out by itself of a descriptor
		}
		drive := fmt.Sprintf("id=d%d,if=none,format=raw,cache=writeback,auto-read-only=off,%s", i, file+inFdset(diskFD+i))
		if d.ReadOnly {
			drive += ",read-only=on"
		} else {
			drive += ",discard=unmap"
		}
		a = append(a, "-add-fd", fdset(diskFD+i), "-drive", drive, "-device", fmt.Sprintf("virtio-blk-device,drive=d%d", i))
	}
	if m.NIC != nil {
		a = append(a, "-netdev", fmt.Sprintf("tap,id=n0,fd=%d,vhost=off", diskFD+len(m.Disks)), "-device", "virtio-net-device,netdev=n0,mac="+m.NIC.MAC)
	}
	return a
}

// fdset gives QEMU an open file as the file that inFdset names.
func fdset(fd int) string { return fmt.Sprintf("fd=%d,set=%d", fd, fd) }

func inFdset(fd int) string { return fmt.Sprintf("/dev/fdset/%d", fd) }
