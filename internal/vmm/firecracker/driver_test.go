package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// testUID is a user that there is nowhere else.
const testUID = 0x7fff1235

// newDriver returns a driver of a fake Firecracker, on a host with KVM.
func newDriver(t *testing.T, setup fakeSetup, o Options) *Driver {
	t.Helper()
	o.Binary = fakes(t, setup)
	return driverOf(o)
}

func driverOf(o Options) *Driver {
	d := New(o)
	d.probeKVM = func(context.Context) error { return nil }
	return d
}

// newMachine describes a machine with disks, in directories whose names no command line
// and no socket address likes.
func newMachine(t *testing.T) vmm.Machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a machine's cgroup needs root")
	}
	dir := filepath.Join(t.TempDir(), "a,b=c", strings.Repeat("long", 25))
	m := vmm.Machine{
		ID: "test", UID: testUID, CPUs: 1, Memory: fakeMemory, Cmdline: "ignore_loglevel",
		Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd"),
		Console: filepath.Join(dir, "console.log"), Log: filepath.Join(dir, "vmm.log"), RunDir: filepath.Join(dir, "run"),
	}
	must(t, os.MkdirAll(m.RunDir, 0o700))
	must(t, os.Chmod(dir, 0o700)) // as the directories of kernels and VMs are
	me, err := os.Executable()
	must(t, err)
	text, err := os.ReadFile(me)
	must(t, err)
	must(t, os.WriteFile(m.Kernel, text, 0o400))
	must(t, os.WriteFile(m.Initrd, []byte("initrd"), 0o400))
	for n := range 4 {
		d := vmm.Disk{Path: filepath.Join(dir, fmt.Sprintf("disk%d", n)), ReadOnly: n != 1}
		must(t, os.WriteFile(d.Path, make([]byte, 4096), 0o600))
		m.Disks = append(m.Disks, d)
	}
	cgroups, err := vmm.NewCgroups("fctest-" + resource.RandomName(4))
	must(t, err)
	ref := resource.Ref{Kind: cgroups.Kind(), Name: cgroups.Name(resource.RandomName(4))}
	must(t, cgroups.Acquire(t.Context(), ref))
	t.Cleanup(func() {
		if err := cgroups.Release(context.Background(), ref); err != nil {
			t.Error(err)
		}
	})
	m.Cgroup = cgroups.Path(ref.Name)
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addTap gives a machine a network, with small packets.
func addTap(t *testing.T, m *vmm.Machine) {
	t.Helper()
	name := "fct" + resource.RandomName(4)
	if err := linux.AddTap(name); err != nil {
		t.Skip("this host makes no tap devices: ", err)
	}
	t.Cleanup(func() {
		if err := linux.DeleteLink(name); err != nil {
			t.Error(err)
		}
	})
	m.NIC = &vmm.NIC{Tap: name, MAC: "02:00:00:00:00:01"}
}

func start(t *testing.T, d *Driver, m vmm.Machine) vmm.Instance {
	t.Helper()
	inst, err := d.Start(ctxOf(t), m)
	must(t, err)
	t.Cleanup(func() {
		inst.(*instance).Kill()
		must(t, inst.Close())
	})
	return inst
}

func connect(t *testing.T, inst vmm.Instance) *guest.Conn {
	t.Helper()
	conn, err := guest.Connect(ctxOf(t), guest.Stream, inst.Dial, "")
	must(t, err)
	t.Cleanup(conn.Close)
	return conn
}

func awaitExit(t *testing.T, inst vmm.Instance) vmm.Exit {
	t.Helper()
	select {
	case <-inst.Exited():
	case <-time.After(time.Minute):
		t.Fatal("the VMM has not ended")
	}
	return inst.Exit()
}

func noneLeft(t *testing.T, m vmm.Machine) {
	t.Helper()
	if pids, err := linux.CgroupPIDs(m.Cgroup); err != nil || len(pids) > 0 {
		t.Errorf("processes %v are left, %v", pids, err)
	}
}

// Everything that the driver asks for, of each version, in a jail and without, is valid
// by Firecracker's own description and in an order that it takes.
func TestContract(t *testing.T) {
	if spec(t) == nil {
		t.Logf("%s, Firecracker's description of its API, is not on this host: requests are not compared with it", specPath())
	}
	for _, version := range []string{"1.12.0", "1.13.1", "1.16.1"} { // those that differ
		for _, noJail := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s jail=%v", version, !noJail), func(t *testing.T) {
				testLife(t, fakeSetup{Version: version}, Options{NoJail: noJail, Disk: Rate{Bytes: 1 << 20}, Network: Rate{Bytes: 1 << 20, Ops: 1000}})
			})
		}
	}
}

func testLife(t *testing.T, setup fakeSetup, o Options) {
	d := newDriver(t, setup, o)
	m := newMachine(t)
	addTap(t, &m)
	inst := start(t, d, m)
	conn := connect(t, inst)
	if greeting, err := conn.Configure(t.Context(), wire.Configure{}); err != nil || greeting.Started != 1 {
		t.Errorf("the agent: %+v, %v", greeting, err)
	}
	if !o.NoJail {
		checkConfined(t, inst.PID())
	}
	must(t, os.Truncate(m.Disks[1].Path, 8192))
	must(t, inst.ResizeDisk(t.Context(), 1, 8192))

	must(t, inst.Pause(t.Context()))
	must(t, inst.Pause(t.Context()))
	later, err := driverOf(d.options).Attach(t.Context(), m)
	must(t, err)
	must(t, later.Resume(t.Context()))
	must(t, later.Resume(t.Context()))
	connect(t, later)
	must(t, later.Close())

	dir := t.TempDir()
	if err := inst.Snapshot(t.Context(), dir); err != nil { // of one that runs: it is paused first
		t.Fatal(err)
	}
	must(t, inst.Resume(t.Context()))
	must(t, inst.Pause(t.Context()))
	if err := inst.Snapshot(t.Context(), dir); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another snapshot: %v", err)
	}
	if used, err := linux.Allocated(filepath.Join(dir, snapshotMemory)); err != nil || used > fakeMemory/10 {
		t.Errorf("a memory of zeros takes %d bytes, %v", used, err)
	}
	inst.(*instance).Kill()

	m.RunDir = filepath.Join(filepath.Dir(m.RunDir), "again")
	must(t, os.Mkdir(m.RunDir, 0o700))
	restored, err := d.Restore(t.Context(), m, dir)
	must(t, err)
	defer restored.Close()
	must(t, os.RemoveAll(dir))
	if !o.NoJail {
		checkConfined(t, restored.PID())
	}
	must(t, restored.Resume(t.Context()))
	connect(t, restored)
	must(t, restored.PowerButton(t.Context()))
	if exit := awaitExit(t, restored); !exit.Known || exit.Code != 0 || exit.Signal != "" {
		t.Errorf("switched off by its guest, the VMM exited as %+v", exit)
	}
}

// checkConfined looks from outside at what the VMM could do to its host.
func checkConfined(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	uid := fmt.Sprint(testUID)
	for _, want := range []string{
		"Uid: " + uid + " " + uid + " " + uid + " " + uid, "Gid: " + uid + " " + uid + " " + uid + " " + uid, "Groups:",
		"CapEff: 0000000000000000", "CapPrm: 0000000000000000", "CapBnd: 0000000000000000", "CapAmb: 0000000000000000", "NoNewPrivs: 1",
	} {
		if !slices.ContainsFunc(strings.Split(string(status), "\n"), func(line string) bool { return strings.Join(strings.Fields(line), " ") == want }) {
			t.Errorf("the VMM's status has no %q:\n%s", want, status)
		}
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "dev disk0 disk1 disk2 disk3 initrd kernel log metrics run snapshot" && got != "dev disk0 disk1 disk2 disk3 log metrics run snapshot" {
		t.Errorf("the VMM sees %s", got)
	}
	if devices, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/dev", pid)); err != nil || len(devices) != 1 || devices[0].Name() != "kvm" {
		t.Errorf("the VMM has the devices %v, %v", devices, err)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.HasPrefix(f[5], "rw") && !slices.Contains([]string{"/disk1", "/log", "/metrics"}, f[4]) {
			t.Errorf("the VMM may write to %s", f[4])
		}
	}
}

// What Firecracker refuses, the user reads; nothing is left.
func TestFaults(t *testing.T) {
	for what, message := range map[string]string{
		"PUT /machine-config":          "The memory size (MiB) is invalid.",
		"PUT /drives/d2":               "Drive config error: Unable to create the virtio block device",
		"PUT /vsock":                   "Vsock config error: Cannot create backend for vsock device: Address already in use",
		"PUT /actions":                 "Start microvm error: Cannot load kernel: Invalid Elf magic number",
		"GET /version":                 "out of order",
		"PUT /serial":                  "Serial error\nin two lines\x1b[31m",
		"PUT /boot-source":             "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)",
		"PUT /balloon":                 strings.Repeat("long ", 1000),
		"PUT /network-interfaces/eth0": "Network config error",
	} {
		t.Run(what, func(t *testing.T) {
			d := newDriver(t, fakeSetup{Faults: map[string]string{what: message}}, Options{NoJail: true})
			m := newMachine(t)
			addTap(t, &m)
			_, err := d.Start(ctxOf(t), m)
			if err == nil {
				t.Fatal("it started")
			}
			said, _, _ := strings.Cut(message, "\n")
			text := err.Error()
			if !strings.Contains(text, said[:min(len(said), 500)]) || !strings.Contains(text, what) || strings.ContainsAny(text, "\n\x1b") || len(text) > 2000 {
				t.Errorf("got %q", text)
			}
			if api.CodeOf(err) != api.CodeUnavailable {
				t.Errorf("code %s", api.CodeOf(err))
			}
			noneLeft(t, m)
		})
	}
}

// What Firecracker would take and not do, or tell of late, is refused before it starts.
func TestRefusedBefore(t *testing.T) {
	for name, tc := range map[string]struct {
		version string
		change  func(t *testing.T, m *vmm.Machine)
		want    string
	}{
		"directory":  {"", func(t *testing.T, m *vmm.Machine) { m.Disks[0].Path = t.TempDir() }, "is no regular file"},
		"no disk":    {"", func(_ *testing.T, m *vmm.Machine) { m.Disks[2].Path += "x" }, "no such file"},
		"no device":  {"", func(_ *testing.T, m *vmm.Machine) { m.Disks[1].Block = true }, "is no block device"},
		"no tap":     {"", func(_ *testing.T, m *vmm.Machine) { m.NIC = &vmm.NIC{Tap: "fct-none"} }, "no such device"},
		"other link": {"", func(_ *testing.T, m *vmm.Machine) { m.NIC = &vmm.NIC{Tap: "lo"} }, "it is a device"},
		"kernel": {"", func(t *testing.T, m *vmm.Machine) {
			m.Kernel = filepath.Join(t.TempDir(), "bzImage")
			must(t, os.WriteFile(m.Kernel, []byte("MZ, not a kernel that it boots"), 0o600))
		}, "no uncompressed vmlinux"},
		"too many on MMIO": {"1.12.1", func(_ *testing.T, m *vmm.Machine) { m.Disks = slices.Repeat(m.Disks[:1], 15) }, "room for 17"},
		"too many on PCI":  {"1.13.0", func(_ *testing.T, m *vmm.Machine) { m.Disks = slices.Repeat(m.Disks[:1], 29) }, "room for 31"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t, fakeSetup{Version: tc.version}, Options{})
			m := newMachine(t)
			tc.change(t, &m)
			if _, err := d.Start(ctxOf(t), m); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			noneLeft(t, m)
			if entries, err := os.ReadDir(m.RunDir); err != nil || len(entries) > 0 {
				t.Errorf("made before it was refused: %v, %v", entries, err)
			}
		})
	}
}

// More devices than there is room for on one bus are on the other.
func TestManyDisks(t *testing.T) {
	d := newDriver(t, fakeSetup{Unchecked: true}, Options{})
	m := newMachine(t)
	m.Disks = append(m.Disks, slices.Repeat(m.Disks[:1], 24)...)
	connect(t, start(t, d, m))
}

func TestUnknownWords(t *testing.T) {
	for _, tc := range []struct{ id, want string }{{"test", "test"}, {"a_b c/d", "a-b-c-d"}, {strings.Repeat("a", 100), strings.Repeat("a", 64)}} {
		if got := (place{m: vmm.Machine{ID: tc.id}}).name(); got != tc.want {
			t.Errorf("%q is called %q", tc.id, got)
		}
	}
}

// A VMM that ends by itself is seen to, with how and its last words.
func TestDeath(t *testing.T) {
	d := newDriver(t, fakeSetup{Guest: "panics", Unchecked: true}, Options{})
	m := newMachine(t)
	must(t, os.WriteFile(m.Log, []byte("what an earlier run said\n"), 0o600))
	exit := awaitExit(t, start(t, d, m))
	if !exit.Known || exit.Code != 148 || exit.Log != "firecracker says goodbye" {
		t.Errorf("exited as %+v", exit)
	}
	if console, err := os.ReadFile(m.Console); err != nil || !strings.Contains(string(console), "Kernel panic") {
		t.Errorf("console %q, %v", console, err)
	}
}

// The agent's power-off ends the VMM.
func TestPowerOff(t *testing.T) {
	inst := start(t, newDriver(t, fakeSetup{Unchecked: true}, Options{}), newMachine(t))
	must(t, connect(t, inst).PowerOff(t.Context()))
	if exit := awaitExit(t, inst); !exit.Known || exit.Code != 0 || exit.Signal != "" {
		t.Errorf("exited as %+v", exit)
	}
}

// A start that is cancelled leaves no process.
func TestCancelledStart(t *testing.T) {
	d := newDriver(t, fakeSetup{Unchecked: true}, Options{})
	m := newMachine(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = d.Check(t.Context())
	if _, err := d.Start(ctx, m); err == nil {
		t.Error("started although the context had ended")
	}
	noneLeft(t, m)
}

// A snapshot of which something is missing is refused.
func TestDamagedSnapshot(t *testing.T) {
	d := newDriver(t, fakeSetup{Unchecked: true}, Options{})
	m := newMachine(t)
	inst := start(t, d, m)
	connect(t, inst)
	must(t, inst.Pause(t.Context()))
	dir := t.TempDir()
	must(t, inst.Snapshot(t.Context(), dir))
	inst.(*instance).Kill()
	m.RunDir = filepath.Join(filepath.Dir(m.RunDir), "again")
	for i, damage := range []func() error{
		func() error { return os.WriteFile(filepath.Join(dir, snapshotState), []byte("damaged"), 0o600) },
		func() error { return os.Truncate(filepath.Join(dir, snapshotMemory), 4096) },
		func() error { return os.Remove(filepath.Join(dir, snapshotState)) },
	} {
		must(t, damage())
		must(t, os.RemoveAll(m.RunDir))
		must(t, os.Mkdir(m.RunDir, 0o700))
		if _, err := d.Restore(ctxOf(t), m, dir); err == nil {
			t.Errorf("restored after damage %d", i)
		}
		noneLeft(t, m)
	}
}
