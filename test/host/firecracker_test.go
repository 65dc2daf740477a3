package host

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/hosttest"
)

// TestFirecracker runs the suite of drivers against a real Firecracker in the VM, which
// has KVM: make test-firecracker.
func TestFirecracker(t *testing.T) {
	binary, jailer := os.Getenv("BANGER_FIRECRACKER"), os.Getenv("BANGER_JAILER")
	if binary == "" || jailer == "" {
		t.Skip("Firecracker was not run: BANGER_FIRECRACKER and BANGER_JAILER do not name its programs")
	}
	dir := hosttest.HostVMFiles + "/firecracker/"
	v := hosttest.NewHostVM(t, map[string]string{
		"firecracker/suite":       hosttest.BuildTests(t, "internal/vmm/firecracker"),
		"firecracker/firecracker": binary,
		"firecracker/jailer":      jailer,
		"firecracker/vmlinux":     os.Getenv("BANGER_TEST_VMLINUX"),
		"firecracker/initrd":      os.Getenv("BANGER_TEST_INITRD"),
	})
	v.RunTests(t, filepath.Join(dir, "suite"), "^TestConformance$",
		"BANGER_FIRECRACKER="+dir+"firecracker", "BANGER_JAILER="+dir+"jailer", "BANGER_TEST_VMLINUX="+dir+"vmlinux", "BANGER_TEST_INITRD="+dir+"initrd")
}
