package doctor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"banger/api"
	"banger/internal/config"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/space"
	"banger/internal/store"
	"banger/internal/vmm"
	"banger/internal/vmm/qemu"
)

// newConfig is that of an installation whose directories are there.
func newConfig(t *testing.T) Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("what belongs to root needs root")
	}
	dir := t.TempDir()
	c := Config{Paths: config.Paths{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}, Group: "no-such-group"}
	c.Room = space.Room{Dir: c.Paths.State}
	for _, p := range c.places() {
		if p.dir {
			if err := os.MkdirAll(p.path, 0o711); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(p.path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// expect looks for a finding, and for what all findings that are not good have.
func expect(t *testing.T, findings []api.Finding, check string, severity api.Severity, message string) {
	t.Helper()
	for _, f := range findings {
		if f.Severity != api.SeverityOK && f.Meaning == "" {
			t.Errorf("it does not say what this means: %+v", f)
		}
	}
	if !slices.ContainsFunc(findings, func(f api.Finding) bool {
		return f.Check == check && f.Severity == severity && strings.Contains(f.Message, message)
	}) {
		t.Errorf("no %s of %s about %q in %+v", severity, check, message, findings)
	}
}

func mount(t *testing.T, dir, options string) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "banger-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestDirectories(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil    func(t *testing.T, c Config)
		check    string
		severity api.Severity
		message  string
		stays    bool // a repair does not see to it
	}{
		"good":        {func(*testing.T, Config) {}, "permissions", api.SeverityOK, "only root writes", true},
		"of a user":   {func(t *testing.T, c Config) { must(t, os.Chown(c.Paths.Run, 1000, -1)) }, "permissions", api.SeverityError, "belongs to user 1000", false},
		"open":        {func(t *testing.T, c Config) { must(t, os.Chmod(c.Paths.State+"/vms", 0o777)) }, "permissions", api.SeverityError, "has mode 0777", false},
		"open secret": {func(t *testing.T, c Config) { must(t, os.Chmod(c.Paths.State+"/banger.db", 0o644)) }, "permissions", api.SeverityError, "has mode 0644", false},
		"a link": {func(t *testing.T, c Config) {
			must(t, os.Remove(c.Paths.State+"/cache"))
			must(t, os.Symlink("/etc", c.Paths.State+"/cache"))
		}, "permissions", api.SeverityError, "is not what it should be", true},
		"read-only": {func(t *testing.T, c Config) { mount(t, c.Paths.State+"/layers", "ro,mode=0711") }, "writable", api.SeverityError, "layers: read-only file system", true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConfig(t)
			tc.spoil(t, c)
			expect(t, c.checkDirectories(t.Context()), tc.check, tc.severity, tc.message)
			c.Ledger = agreement{}
			done := Repair(t.Context(), c, Repairer{})
			if tc.stays {
				if slices.ContainsFunc(done, func(r api.Repair) bool { return r.Error == nil }) {
					t.Errorf("repaired: %+v", done)
				}
				return
			}
			if len(done) != 1 || done[0].Error != nil {
				t.Errorf("repaired: %+v", done)
			}
			expect(t, c.checkDirectories(t.Context()), "permissions", api.SeverityOK, "only root writes")
		})
	}
	if info, err := os.Stat("/etc"); err != nil || info.Mode().Perm()&0o055 == 0 {
		t.Errorf("/etc has mode %v, %v", info.Mode(), err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// agreement is a ledger with which nothing is wrong.
type agreement struct{}

func (agreement) Check(context.Context) ([]resource.Finding, error) { return nil, nil }

func TestRoom(t *testing.T) {
	c := newConfig(t)
	mount(t, c.Paths.State, "size=4m,mode=0711")
	for reserve, severity := range map[int64]api.Severity{1 << 20: api.SeverityOK, 3 << 20: api.SeverityWarning, 5 << 20: api.SeverityError} {
		c.Room.Reserve = reserve
		expect(t, c.checkRoom(t.Context()), "space", severity, "4MiB available")
	}
	c.Room.Dir = filepath.Join(c.Paths.State, "none")
	expect(t, c.checkRoom(t.Context()), "space", api.SeverityOK, "not there yet")
}

func TestSetAside(t *testing.T) {
	c := newConfig(t)
	expect(t, c.checkLost(t.Context()), "set-aside", api.SeverityOK, "nothing")
	must(t, os.MkdirAll(c.Paths.State+"/lost-1/vms", 0o700))
	must(t, os.WriteFile(c.Paths.State+"/lost-1/vms/work", make([]byte, 1<<20), 0o600))
	must(t, os.WriteFile(c.Paths.State+"/banger.db.lost-2", make([]byte, 1<<20), 0o600))
	expect(t, c.checkLost(t.Context()), "set-aside", api.SeverityWarning, "lost-1 holds 1")
	expect(t, c.checkLost(t.Context()), "set-aside", api.SeverityWarning, "banger.db.lost-2 holds 1")
}

func TestGroup(t *testing.T) {
	c := newConfig(t)
	expect(t, c.checkSocket(t.Context()), "group", api.SeverityOK, "there is no group no-such-group")
	c.Group, c.Served = "nogroup", true
	l, err := linux.ListenUnix(c.Paths.Socket())
	must(t, err)
	defer l.Close()
	expect(t, c.checkSocket(t.Context()), "group", api.SeverityWarning, "is not for the group nogroup")
	shared := false
	c.Ledger = agreement{}
	Repair(t.Context(), c, Repairer{Share: func() error { shared = true; return nil }})
	if !shared {
		t.Error("it was not repaired")
	}
}

// TestTools has nothing in PATH.
func TestTools(t *testing.T) {
	expect(t, checkTools(t.Context()), "tools", api.SeverityOK, "all programs")
	t.Setenv("PATH", t.TempDir())
	for _, program := range []string{"mmdebstrap", "ssh", "apt-get"} {
		expect(t, checkTools(t.Context()), "tools."+program, api.SeverityWarning, "the program "+program+" is not installed")
	}
	c := Config{Drivers: []vmm.Driver{qemu.New("")}}
	expect(t, c.checkDrivers(t.Context()), "qemu", api.SeverityError, "qemu-system-x86_64")
}

// What the host has is asked of it by other ways.
func TestHost(t *testing.T) {
	root, err := linux.CgroupRoot()
	must(t, err)
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	must(t, err)
	severity := api.SeverityOK
	if !strings.Contains(string(text), "memory") {
		severity = api.SeverityWarning
	}
	expect(t, checkCgroups(t.Context()), "cgroups", severity, root)

	devices := checkDevices(t.Context())
	for module, device := range map[string]string{"tun": "/dev/net/tun", "loop": "/dev/loop-control", "vhost_vsock": "/dev/vhost-vsock"} {
		if _, err := os.Stat(device); err == nil {
			expect(t, devices, "kernel."+module, api.SeverityOK, "the kernel has "+device)
		}
	}
	kvm := checkKVM(t.Context())
	if _, err := os.Stat("/dev/kvm"); err != nil {
		expect(t, kvm, "kvm", api.SeverityWarning, "no such file")
	} else {
		expect(t, kvm, "kvm", kvm[0].Severity, "KVM")
	}
}

// TestThings has ledger and host disagree in each way.
func TestThings(t *testing.T) {
	c := newConfig(t)
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	must(t, err)
	t.Cleanup(func() { db.Close() })
	kind := resource.NewDir("run-dir", c.Paths.Run, true, "vm")
	busy := &busyDir{Dir: resource.NewDir("busy", c.Paths.Run, true, "busy")}
	ledger := resource.New(db, "boot", slog.New(slog.DiscardHandler), kind, busy)
	c.Ledger = ledger
	c.VMs = func(context.Context) ([]api.VM, error) { return []api.VM{{ID: "0123456789ab", Name: "api"}}, nil }
	expect(t, c.checkThings(t.Context()), "ledger", api.SeverityOK, "nothing else")

	for _, name := range []string{"held", "missing", "foreign"} {
		_, err := ledger.Acquire(t.Context(), "vm/0123456789ab/run", "run-dir", "vm/"+name, nil)
		must(t, err)
	}
	stuck, err := ledger.Acquire(t.Context(), "vm/0123456789ab/run", "busy", "busy/stuck", nil)
	must(t, err)
	busy.refuses = true
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if ledger.Release(cancelled, stuck) == nil {
		t.Fatal("it was released")
	}
	must(t, os.Remove(c.Paths.Run+"/vm/missing"))
	must(t, os.Remove(c.Paths.Run+"/vm/foreign"))
	must(t, os.WriteFile(c.Paths.Run+"/vm/foreign", nil, 0o600))
	must(t, os.Mkdir(c.Paths.Run+"/vm/stray", 0o700))

	findings := c.checkThings(t.Context())
	expect(t, findings, "missing", api.SeverityError, `run-dir vm/missing of VM "api"`)
	expect(t, findings, "foreign", api.SeverityError, `in the place of run-dir vm/foreign of VM "api"`)
	expect(t, findings, "untracked", api.SeverityWarning, "run-dir vm/stray")
	expect(t, findings, "stuck", api.SeverityWarning, `busy busy/stuck of VM "api" cannot be given back: device or resource busy`)
	if len(findings) != 4 {
		t.Errorf("%+v", findings)
	}

	tend := func(ctx context.Context) error { return ledger.Tend(ctx, func(string) bool { return true }) }
	var failed, repaired []string
	for _, r := range Repair(t.Context(), c, Repairer{Tend: tend}) {
		if r.Error != nil {
			failed = append(failed, r.Error.Message)
		} else {
			repaired = append(repaired, r.Message)
		}
	}
	if want := []string{"run-dir vm/stray was given back"}; !slices.Equal(repaired, want) {
		t.Errorf("repaired %q, want %q", repaired, want)
	}
	if len(failed) != 1 || !strings.Contains(failed[0], "busy/stuck: device or resource busy") {
		t.Errorf("not repaired: %q", failed)
	}
	busy.refuses = false
	done := Repair(t.Context(), c, Repairer{Tend: tend})
	if len(done) != 1 || done[0].Error != nil {
		t.Errorf("repaired: %+v", done)
	}
	for path, there := range map[string]bool{"vm/held": true, "vm/foreign": true, "vm/stray": false, "busy/stuck": false} {
		if _, err := os.Lstat(filepath.Join(c.Paths.Run, path)); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// busyDir is a directory that the host does not let go of, as long as refuses says so.
type busyDir struct {
	*resource.Dir
	refuses bool
}

func (b *busyDir) Release(ctx context.Context, ref resource.Ref) error {
	if b.refuses {
		return syscall.EBUSY
	}
	return b.Dir.Release(ctx, ref)
}

func TestAgents(t *testing.T) {
	c := Config{Served: true, VMs: func(context.Context) ([]api.VM, error) {
		return []api.VM{
			{Name: "old", Owner: 1000, State: api.VMRunning, Agent: "x", Pending: []string{"agent"}},
			{Name: "mute", State: api.VMRunning},
			{Name: "new", Owner: 1001, State: api.VMRunning, Agent: "x"},
			{Name: "stopped", Owner: 1001, State: api.VMStopped},
		}, nil
	}}
	expect(t, c.checkVMs(t.Context(), 0), "agents", api.SeverityWarning, `VM "old" runs the agent of another version`)
	expect(t, c.checkVMs(t.Context(), 0), "agents", api.SeverityWarning, `the agent of VM "mute" does not answer`)
	expect(t, c.checkVMs(t.Context(), 1001), "agents", api.SeverityOK, "of 2 VMs, 1 run")
	if found := c.checkVMs(t.Context(), 1000); len(found) != 1 {
		t.Errorf("%+v", found)
	}
}

// A check that hangs or breaks is a finding, and keeps none of the others.
func TestBrokenChecks(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	release := make(chan struct{})
	defer close(release)
	hangs := check{"storage", false, func(context.Context) []api.Finding { <-release; return nil }}
	expect(t, hangs.run(ended), "hangs", api.SeverityError, "has not ended")
	breaks := check{"storage", false, func(context.Context) []api.Finding { panic(errors.New("ouch")) }}
	expect(t, breaks.run(t.Context()), "defect", api.SeverityError, "ouch")
}

// Users other than root are not told what is private.
func TestPrivate(t *testing.T) {
	c := newConfig(t)
	c.Ledger = agreement{}
	groups := func(caller uint32) (seen []string) {
		for _, f := range Examine(t.Context(), c, caller) {
			seen = append(seen, f.Group)
		}
		return seen
	}
	if !slices.Contains(groups(0), groupThings) || slices.Contains(groups(1000), groupThings) {
		t.Errorf("root sees %q, others %q", groups(0), groups(1000))
	}
}
