package vm_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/hosttest"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/operation"
	"banger/internal/resource"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmm"

	"go.uber.org/goleak"
)

// TestMain runs the tests on a network of their own, or is a daemon of theirs.
func TestMain(m *testing.M) {
	if os.Getenv(beDaemon) != "" {
		os.Exit(runDaemon())
	}
	hosttest.Main(leakChecked{m})
}

// leakChecked are tests that fail when they leave a goroutine behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// patience bounds what has to happen soon.
const patience = time.Minute

// tester is a test, or one check of a property.
type tester interface {
	Helper()
	Cleanup(func())
	Skip(...any)
	Error(...any)
	Errorf(string, ...any)
	Fatal(...any)
	Fatalf(string, ...any)
}

// world is a host with an installation, whose daemon may die and come back.
type world struct {
	t          tester
	state, run string
	installed  string
	bootID     string
	machines   *machines
	remote     string       // of the machines, where they are another process's; see daemon_test.go
	whole      bool         // with images, kernels and a network that are real
	subnet     netip.Prefix // of a whole world; no other has it
	fail       func(action string, ref resource.Ref) error
	log        *logBuffer
	mapper     *hosttest.Mapper // the kernel's, which outlives daemons
	root       api.RootDisk     // of VMs for which nothing is said
	lacking    error            // of the assets
	grace      time.Duration    // of leases; the Service's own where it is 0

	db      *store.DB
	kinds   []resource.Kind
	ledger  *resource.Ledger
	ops     *operation.Registry
	svc     *vm.Service
	images  *image.Manager  // of a whole world
	kernels *kernel.Manager // likewise
	net     *network.Network
	gate    *gate
}

// logBuffer keeps what the daemons of a world log.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (w *world) logger() *slog.Logger { return slog.New(slog.NewTextHandler(w.log, nil)) }

// newWorld makes a host on which VMs can be made of the image debian, without a
// daemon.
func newWorld(t tester) *world {
	t.Helper()
	w := emptyWorld(t)
	if err := os.MkdirAll(filepath.Join(w.state, "bases"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.state, "assets"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range assetFiles {
		if err := os.WriteFile(filepath.Join(w.state, "assets", name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db := w.open()
	defer db.Close()
	ctx := context.Background()
	if err := db.InsertImage(ctx, image.Image{ID: "sha256:debian", Name: "debian", Layers: []image.Layer{{Digest: "sha256:layer", Dir: "layers/debian"}}}, false); err != nil {
		t.Fatal(err)
	}
	if err := db.InsertKernel(ctx, kernel.Kernel{Name: "linux", Dir: "kernels/linux", Default: true}); err != nil {
		t.Fatal(err)
	}
	return w
}

// emptyWorld makes a host with nothing on it.
func emptyWorld(t tester) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	dir := memoryDir(t)
	w := &world{
		t: t, state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"), installed: resource.RandomName(4),
		machines: &machines{t: t, live: map[string]*machine{}}, log: &logBuffer{},
		mapper: hosttest.NewMapper(dir), root: api.RootDiskOverlay,
	}
	for _, d := range []string{filepath.Join(w.state, "vms"), filepath.Join(w.run, "vm")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// memoryDir returns a directory that needs no disk, where the host has one: the
// database is made durable after each statement.
func memoryDir(t tester) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "bgr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (w *world) open() *store.DB {
	db, err := store.Open(context.Background(), filepath.Join(w.state, "banger.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	return db
}

// boot starts a daemon that dies after so many statements; never where it is 0.
// It returns the error of its recovery.
func (w *world) boot(passages int) error {
	g := newGate(passages)
	w.db, w.gate = w.open(), g
	st := gatedStore{w.db, g}
	log := w.logger()
	cgroups, err := vmm.NewCgroups(w.installed)
	if err != nil {
		w.t.Fatal(err)
	}
	dirs := resource.NewDir(vm.KindDir, w.state, false, "vms", "layers", "kernels")
	runDirs := resource.NewDir(vm.KindRunDir, w.run, true, "vm")
	uppers, works := disk.New(disk.KindUpper, w.state), disk.New(disk.KindWork, w.state)
	bases, cows := disk.New(disk.KindBase, w.state), disk.New(disk.KindCow, w.state)
	w.kinds = slices.Concat([]resource.Kind{dirs, resource.NewDir(vm.KindSuspended, w.state, false, vm.SuspendedDir), uppers, works, bases, cows}, disk.SnapshotKinds(w.installed, w.state, w.kernel()))
	if w.whole {
		w.kinds = append(w.kinds, network.Kinds(w.installed)...)
	}
	w.kinds = append(w.kinds, runDirs, cgroups)
	for i, k := range w.kinds {
		w.kinds[i] = gatedKind{k, g, w.fail}
	}
	boot, err := linux.BootID()
	if err != nil {
		w.t.Fatal(err)
	}
	if w.bootID != "" {
		boot = w.bootID
	}
	w.ledger = resource.New(st, boot, log, w.kinds...)
	w.net = network.New(network.Config{Installation: w.installed, Subnet: w.subnet, Ledger: w.ledger, Settings: w.db, Copy: filepath.Join(w.state, "network.json"), Log: log})
	w.ops = operation.NewRegistry()
	w.svc = vm.New(vm.Config{
		Store: st, Assets: w.assets(w.db, dirs), Ledger: w.ledger, Dirs: dirs, RunDirs: runDirs, Cgroups: cgroups, Uppers: uppers, Works: works,
		Bases: bases, Cows: cows, Snapshots: disk.NewSnapshots(w.ledger, w.installed, w.state, w.kernel()),
		Network: w.net, UIDs: vm.UIDs{First: 1 << 30, Last: 1<<30 + 1000}, Engines: vmm.Engines{w.driver()}, Operations: w.ops, StateDir: w.state, Installation: w.installed, Agent: "cat", Log: log,
		Defaults: api.CreateVM{Image: "debian", CPUs: 1, Memory: 64 << 20, RootDisk: w.root, RootSize: 64 << 20, DiskSize: new(int64(64 << 20)), NAT: new(true), IO: &api.IO{}, Network: api.NetworkNone},
	})
	if w.grace > 0 {
		w.svc.SetLeaseGrace(w.grace)
	}
	ctx := context.Background()
	if err := w.adopt(ctx); err != nil {
		return err
	}
	if err := w.recover(ctx); err != nil && passages == 0 {
		w.t.Errorf("recovery: %v", err)
	}
	err = w.svc.Recover(ctx)
	if err == nil && w.whole {
		err = w.net.Settle(ctx)
	}
	return err
}

// adopt makes the database know what only second copies do.
func (w *world) adopt(ctx context.Context) error {
	if w.whole {
		log := w.logger()
		if err := errors.Join(w.images.Adopt(ctx, log), w.kernels.Adopt(ctx, log), w.net.Restore(ctx)); err != nil {
			return err
		}
	}
	return w.svc.Adopt(ctx)
}

// recover makes ledger and host agree.
func (w *world) recover(ctx context.Context) error {
	alive, err := w.svc.Alive(ctx)
	if err != nil {
		return err
	}
	alive[network.Owner] = true
	if w.whole {
		layers, err := w.images.Alive(ctx)
		if err != nil {
			return err
		}
		bundles, err := w.kernels.Alive(ctx)
		if err != nil {
			return err
		}
		maps.Copy(alive, layers)
		maps.Copy(alive, bundles)
	}
	return w.ledger.Recover(ctx, func(owner string) bool { return alive[owner] })
}

// kernel is the device-mapper of this process, or another's.
func (w *world) kernel() disk.Mapper {
	if w.remote != "" {
		return remoteMapper{remoteDriver{w.remote, w.installed}}
	}
	return w.mapper
}

// driver drives the machines of this process, or another's.
func (w *world) driver() vmm.Driver {
	if w.remote != "" {
		return remoteDriver{w.remote, w.installed}
	}
	return driver{w.machines, w.gate}
}

// pids returns the processes of the VMMs on the host, by the id of the VM.
func (w *world) pids() (pids map[string]int) {
	if w.remote == "" {
		return w.machines.pids()
	}
	if err := (remoteDriver{w.remote, w.installed}).ask(context.Background(), "pids/"+w.installed, nil, &pids); err != nil {
		w.t.Fatal(err)
	}
	return pids
}

// down ends the daemon, in order or, where its gate was set so, long dead.
func (w *world) down() {
	w.svc.Close()
	ended, end := context.WithCancel(context.Background())
	end()
	w.net.Run(ended) // which ends its resolver
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.ops.Close(ctx); err != nil {
		w.t.Error(err)
	}
	if err := w.db.Close(); err != nil {
		w.t.Error(err)
	}
}

// wait waits for the end of an operation that was begun without an error.
func (w *world) wait(op api.Operation, err error) error {
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if op, err = w.ops.Wait(ctx, op.ID); err != nil {
		w.t.Errorf("%s does not end: %v", op.Kind, err)
		return err
	}
	if op.Error != nil {
		return op.Error
	}
	return nil
}

// clear deletes every VM, and what there is for VMs to be made of, and looks for what
// is left.
func (w *world) clear() {
	ctx := context.Background()
	vms, err := w.svc.List(ctx, 0)
	if err != nil {
		w.t.Error(err)
	}
	for _, v := range vms {
		err := w.wait(w.svc.Delete(ctx, 0, v.ID, true))
		if now, gerr := w.svc.Get(ctx, 0, v.ID); api.CodeOf(err) == api.CodeConflict && (gerr != nil || now.State == api.VMDeleting) { // its lease has ended
			w.await("a VM that is being deleted is gone", func() bool { _, err := w.svc.Get(ctx, 0, v.ID); return err != nil })
			continue
		}
		if err != nil && api.CodeOf(err) != api.CodeNotFound {
			w.t.Errorf("delete --force VM %q, which is %s: %v", v.Name, v.State, err)
		}
	}
	if w.whole {
		w.removeAssets()
	}
	w.empty()
}

// empty looks for what is left on a host whose VMs are deleted.
func (w *world) empty() {
	ctx := context.Background()
	if vms, _ := w.svc.List(ctx, 0); len(vms) > 0 {
		w.t.Errorf("listed: %+v", vms)
	}
	if recs, err := w.db.VMs(ctx); err != nil || len(recs) > 0 {
		w.t.Errorf("in the database: %+v, %v", recs, err)
	}
	if refs, err := w.db.Resources(ctx, ""); err != nil || len(refs) > 0 {
		w.t.Errorf("in the ledger: %+v, %v", refs, err)
	}
	w.await("every VMM ends", func() bool { return len(w.pids()) == 0 })
	cgroups, err := vmm.NewCgroups(w.installed)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, k := range w.kinds {
		if left, err := k.List(ctx); err != nil || len(left) > 0 {
			w.t.Errorf("of the kind %s are left: %+v, %v", k.Kind(), left, err)
		}
	}
	for _, dir := range []string{filepath.Join(w.state, "vms"), filepath.Join(w.state, vm.SuspendedDir), filepath.Join(w.run, "vm"), cgroups.Path("banger-" + w.installed)} {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && path != dir || err == nil && dir == cgroups.Path("banger-"+w.installed) {
				w.t.Errorf("left: %s", path)
			}
			return nil
		})
	}
}

// create makes a VM that is not started, and must succeed.
func (w *world) create(name string) api.VM {
	w.t.Helper()
	v, op, err := w.svc.Create(context.Background(), 0, api.CreateVM{Name: name})
	if err := w.wait(op, err); err != nil {
		w.t.Fatalf("create VM %q: %v", name, err)
	}
	return v
}

// get returns a VM that there must be.
func (w *world) get(ref string) api.VM {
	w.t.Helper()
	v, err := w.svc.Get(context.Background(), 0, ref)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// await waits until a condition holds.
func (w *world) await(what string, holds func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("it does not come to pass that %s", what)
		}
	}
}
