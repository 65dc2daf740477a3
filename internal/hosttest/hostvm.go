package hosttest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The VM of the fixture that plays a host, its image, and where the harness puts
// files in it: its work disk, which is a plain ext4.
const (
	hostVM      = "host"
	HostVMFiles = "/root"
)

// scriptPatience is how long a script in the host in a VM may take, with VMs of its own.
const scriptPatience = 30 * time.Minute

// HostVM is a VM that plays a host of its own: Debian with systemd as process 1,
// systemd-resolved, udev, device-mapper, control groups (version 2) alone, and /dev/kvm
// by nested virtualization. Banger itself runs it.
type HostVM struct {
	Host *Host // the installation that runs it
}

// NewHostVM boots the VM of the fixture that plays a host, with files put below
// HostVMFiles: a name there for each path here. At the end of t it goes. It skips t
// where the fixture has no such VM.
func NewHostVM(t testing.TB, files map[string]string) *HostVM {
	t.Helper()
	if _, err := os.Stat(os.Getenv("BANGER_FIXTURE") + "-host"); err != nil && os.Getenv("BANGER_FIXTURE") != "" {
		t.Skip("the fixture has no VM that plays a host: run make test")
	}
	v := &HostVM{Host: newFrom(t, "-host", nil)}
	v.put(t, files)
	v.start(t)
	t.Cleanup(func() {
		if t.Failed() {
			r := v.Run(t, "journalctl --no-pager --boot --lines 80")
			t.Logf("the journal of the host in the VM ends with:\n%s", r.Stdout)
		}
	})
	return v
}

// put copies files onto the work disk while the VM is stopped, which takes none of
// the time that a copy through its channel takes without hardware virtualization.
func (v *HostVM) put(t testing.TB, files map[string]string) {
	t.Helper()
	disks, err := filepath.Glob(filepath.Join(v.Host.Paths.State, "vms", "*", "work-*.ext4"))
	if err != nil || len(disks) != 1 {
		t.Fatalf("the work disk of the host in a VM: %q, %v", disks, err)
	}
	mounted := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
	}
	run("mount", "-o", "loop", disks[0], mounted)
	defer run("umount", mounted)
	for name, path := range files {
		to := filepath.Join(mounted, "root", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Error(err)
			return
		}
		run("cp", "-a", "--sparse=always", path, to)
	}
}

// start starts the VM and waits until its services have started.
func (v *HostVM) start(t testing.TB) {
	t.Helper()
	v.Host.Must(t, "vm", "start", hostVM)
	before := time.Now()
	v.settle(t)
	t.Logf("the host in the VM had started %.0f s after its agent", time.Since(before).Seconds())
}

// settle waits until systemd has nothing left to start. It has no bus at first.
func (v *HostVM) settle(t testing.TB) {
	t.Helper()
	state := v.Must(t, `while :; do
		state=$(systemctl is-system-running --wait 2>/dev/null) || true
		case $state in running | degraded) echo "$state"; exit ;; esac
		sleep 0.2
	done`)
	if state != "running" {
		t.Errorf("the host in the VM is %s:\n%s", state, v.Must(t, "systemctl list-units --failed --plain --no-legend"))
	}
}

// Command prepares a script for the shell of the host in the VM, run as root.
func (v *HostVM) Command(ctx context.Context, script string) *exec.Cmd {
	return v.Host.Command(ctx, "vm", "exec", hostVM, "--", "sh", "-euc", script)
}

// Run runs a script in the shell of the host in the VM, as root.
func (v *HostVM) Run(t testing.TB, script string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	return Run(t, v.Command(ctx, script), "")
}

// Must is Run for what has to succeed; it returns the standard output without space
// at its ends.
func (v *HostVM) Must(t testing.TB, script string) string {
	t.Helper()
	r := v.Run(t, script)
	if r.Exit != 0 {
		t.Fatalf("in the host in the VM: %s\nexit status %d\n%s%s", script, r.Exit, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Reboot shuts the host in the VM down in good order and starts it again.
func (v *HostVM) Reboot(t testing.TB) {
	t.Helper()
	v.Host.Must(t, "vm", "stop", "--timeout", "10m", hostVM)
	v.start(t)
}

// CutPower ends the host in the VM between two instructions and starts it again. What
// it had not written to its disks is lost.
func (v *HostVM) CutPower(t testing.TB) {
	t.Helper()
	v.Host.Must(t, "vm", "kill", hostVM)
	v.start(t)
}

// RunTests runs the tests of a package that match a pattern in the VM, with env, as
// "NAME=value". Those that it skips or does not find are errors: here is all that they need.
func (v *HostVM) RunTests(t testing.TB, binary, pattern string, env ...string) {
	t.Helper()
	r := v.Run(t, strings.Join(env, " ")+" "+binary+" -test.v -test.count 1 -test.run '"+pattern+"'")
	t.Logf("%s in the VM:\n%s", filepath.Base(binary), r.Stdout)
	if r.Exit != 0 {
		t.Errorf("%s: exit status %d\n%s", filepath.Base(binary), r.Exit, r.Stderr)
	}
	if strings.Contains(r.Stdout, "--- SKIP") || !strings.Contains(r.Stdout, "--- PASS") {
		t.Errorf("%s: tests that match %s are skipped, or there is none", filepath.Base(binary), pattern)
	}
}

// BuildTests builds the tests of a package of this module as a program.
func BuildTests(t testing.TB, pkg string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), strings.ReplaceAll(pkg, "/", "-")+".test")
	build := exec.Command("go", "test", "-c", "-o", binary, "banger/"+pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatal(errors.Join(err, errors.New(string(out))))
	}
	return binary
}
