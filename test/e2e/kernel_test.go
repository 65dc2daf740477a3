package e2e

import (
	"os/exec"
	"path"
	"path/filepath"
	"testing"

	"banger/internal/hosttest"
)

// TestKernelInVM runs in a VM what the kernel of the host that tests may lack: device-mapper.
// There it is an error where it is missing.
func TestKernelInVM(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--memory", "768M")
	// Without kmod in the image, opening the nodes has the kernel load what is behind them.
	h.Must(t, "vm", "exec", "m", "--", "sh", "-ec", "mkdir -p /dev/mapper; mknod /dev/loop-control c 10 237; mknod /dev/mapper/control c 10 236; : </dev/loop-control; : </dev/mapper/control")
	for _, pkg := range []struct{ name, run string }{
		{"banger/internal/linux", "Loop|DeviceMapper"},
	} {
		binary := filepath.Join(t.TempDir(), path.Base(pkg.name)+".test")
		if out, err := exec.Command("go", "test", "-c", "-o", binary, pkg.name).CombinedOutput(); err != nil {
			t.Fatalf("build the tests of %s: %v: %s", pkg.name, err, out)
		}
		h.Must(t, "vm", "cp", binary, "m:/srv/"+filepath.Base(binary))
		r := h.Banger(t, "vm", "exec", "--env", "BANGER_TEST_DM=1", "m", "--", "/srv/"+filepath.Base(binary), "-test.v", "-test.run", pkg.run)
		t.Logf("the tests of %s in the VM:\n%s", pkg.name, r.Stdout)
		if r.Exit != 0 {
			t.Errorf("exit status %d\n%s", r.Exit, r.Stderr)
		}
	}
	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}
