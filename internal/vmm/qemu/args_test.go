package qemu

import (
	"strings"
	"testing"

	"banger/internal/vmm"
)

// golden is the command line of machine, an option a line.
const golden = `-name banger-0123
-nodefaults
-no-user-config
-display none
-no-reboot
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-M microvm,x-option-roms=off,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on
-accel ACCEL
-cpu CPU
-m 512M
-smp 2
-kernel /s/vm,linux
-initrd /s/initrd
-append console=ttyS0 quiet reboot=t panic=-1 cryptomgr.notests mitigations=off random.trust_cpu=onTSC banger.layers=vda
-global virtio-mmio.force-legacy=false
-add-fd fd=5,set=5
-chardev file,id=console,append=on,path=/dev/fdset/5
-serial chardev:console
-device virtio-serial-device
-chardev socket,id=agent,server=on,wait=off,fd=3
-device virtserialport,chardev=agent,name=banger.agent
-device virtio-rng-device
-chardev socket,id=monitor,server=on,wait=off,fd=4
-mon chardev=monitor,mode=control
-add-fd fd=6,set=6
-drive id=d0,if=none,format=raw,cache=writeback,auto-read-only=off,file=/dev/fdset/6,read-only=on
-device virtio-blk-device,drive=d0
-add-fd fd=7,set=7
-drive id=d1,if=none,format=raw,cache=writeback,auto-read-only=off,file=/dev/fdset/7,discard=unmap
-device virtio-blk-device,drive=d1
-add-fd fd=8,set=8
-drive id=d2,if=none,format=raw,cache=writeback,auto-read-only=off,file.driver=host_device,file.filename=/dev/fdset/8,discard=unmap
-device virtio-blk-device,drive=d2
-netdev tap,id=n0,fd=9,vhost=off
-device virtio-net-device,netdev=n0,mac=02:00:00:00:00:01
`

func TestArgs(t *testing.T) {
	machine := vmm.Machine{
		ID: "0123", CPUs: 2, Memory: 512 << 20, Kernel: "/s/vm,linux", Initrd: "/s/initrd", Cmdline: "banger.layers=vda",
		Disks:   []vmm.Disk{{Path: "/s/layer.ext4", ReadOnly: true}, {Path: "/s/a,b=c/upper.ext4"}, {Path: "/dev/dm-1", Block: true}},
		Console: "/s/a,b=c/console.log", Log: "/s/vmm.log", RunDir: "/r", Cgroup: "/c",
		NIC: &vmm.NIC{Tap: "bt0", MAC: "02:00:00:00:00:01"},
	}
	for name, tc := range map[string]struct {
		accel  string
		tscKHz int64
		cpu    string
		tsc    string
	}{
		"kvm":                  {"kvm", 0, "host", ""},
		"kvm with a known TSC": {"kvm", 2100000, "host", ""}, // it has the host's clock
		"tcg":                  {"tcg", 2100000, "max,erms=off,fsrm=off", " tsc_early_khz=2100000 tsc=reliable"},
		"tcg without TSC":      {"tcg", 0, "max,erms=off,fsrm=off", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			for i, a := range args(machine, tc.accel, tc.tscKHz) {
				switch {
				case i == 0:
				case strings.HasPrefix(a, "-"):
					got.WriteByte('\n')
				default:
					got.WriteByte(' ')
				}
				got.WriteString(a)
			}
			got.WriteByte('\n')
			want := strings.NewReplacer("ACCEL", tc.accel, "CPU", tc.cpu, "TSC", tc.tsc).Replace(golden)
			if got.String() != want {
				t.Errorf("got\n%s\nwant\n%s", &got, want)
			}
		})
	}
}
