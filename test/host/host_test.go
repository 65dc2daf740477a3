// Package host tests banger on a host of its own, a VM with what the machine of the
// tests may lack: systemd, device-mapper, KVM, control groups without version 1, and a
// power button. The tests need root and the fixture; make test runs a selection of them,
// make test-host all.
package host

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/hosttest"
)

// all says that everything is to be run.
var all = os.Getenv("BANGER_TEST_HOST") == "all"

// kernelTests are the tests of packages that run in the VM: of what only its kernel has.
var kernelTests = []struct {
	pkg, run string
	all      bool // only where everything is run
}{
	{pkg: "internal/linux", run: "Loop|DeviceMapper|KVM"},
	{pkg: "internal/disk", run: "KernelSnapshot"},
	{pkg: "internal/vmm", run: "Limits|CgroupsLife|CgroupsFaults"},
	{pkg: "internal/vmm", run: "CgroupsConcurrently", all: true},
}

// TestHost boots the host in a VM once, for everything.
func TestHost(t *testing.T) {
	files := installFiles(t)
	if all {
		maps.Copy(files, programs("snapshot"))
		maps.Copy(files, programs("oom"))
		maps.Copy(files, failingFiles(t))
	}
	for _, k := range kernelTests {
		if all || !k.all {
			files["tests/"+filepath.Base(k.pkg)] = hosttest.BuildTests(t, k.pkg)
		}
	}
	v := hosttest.NewHostVM(t, files)
	for _, k := range kernelTests {
		if all || !k.all {
			t.Run(k.pkg, func(t *testing.T) {
				v.RunTests(t, hosttest.HostVMFiles+"/tests/"+filepath.Base(k.pkg), k.run, "BANGER_TEST_DM=1")
			})
		}
	}
	if all { // VMs in a VM without hardware virtualization take their time
		t.Run("root disk dm-snapshot", func(t *testing.T) { snapshots(t, v) })
		t.Run("limits and clock", func(t *testing.T) { limitsAndClock(t, v) })
		t.Run("failing disk", func(t *testing.T) { failingDisk(t, v) })
	}
	t.Run("units", func(t *testing.T) { units(t, v) })
}
