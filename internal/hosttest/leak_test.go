package hosttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/config"
	"banger/internal/linux"
)

// The leak check finds one of each thing that it looks for, and nothing on a
// clean host.
func TestLeftovers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts and cgroups need root")
	}
	const installation = "leaktest"
	dir := t.TempDir()
	h := &Host{Paths: config.Paths{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}}
	if left := h.leftovers(installation); len(left) != 0 {
		t.Fatalf("on a clean host: %q", left)
	}

	for _, path := range []string{filepath.Join(h.Paths.State, "vms", "someone"), filepath.Join(h.Paths.Run, "vm", "sockets")} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	process := exec.Command("sleep", "1000")
	process.Env = []string{"BANGER_STATE_DIR=" + h.Paths.State}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait() // killed
	})
	mounted := filepath.Join(h.Paths.State, "mounted")
	if err := os.Mkdir(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "none", mounted).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", mounted).Run(); err != nil {
			t.Error(err)
		}
	})
	root, err := linux.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(root, "banger-"+installation)
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(cgroup); err != nil {
			t.Error(err)
		}
	})

	left := strings.Join(h.leftovers(installation), "\n")
	for _, want := range []string{"process ", "mount ", "cgroup ", "vms/someone", "vm/sockets"} {
		if !strings.Contains(left, want) {
			t.Errorf("the leak check does not find %q; it finds:\n%s", want, left)
		}
	}
}
