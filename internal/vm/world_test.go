package vm_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/network"
	"banger/internal/operation"
	"banger/internal/resource"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmm"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	machines   *machines
	fail       func(action string, ref resource.Ref) error
	log        *logBuffer
	lacking    error         // of the assets
	grace      time.Duration // of leases; the Service's own where it is 0

	db   *store.DB
	ops  *operation.Registry
	svc  *vm.Service
	gate *gate
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

// newWorld makes a host on which VMs can be made of the image debian, without a
// daemon.
func newWorld(t tester) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	dir := memoryDir(t)
	w := &world{
		t: t, state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"), installed: "vmtest" + resource.RandomName(4),
		machines: &machines{t: t, live: map[string]*machine{}}, log: &logBuffer{},
	}
	for _, d := range []string{filepath.Join(w.state, "vms"), filepath.Join(w.run, "vm")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	db := w.open()
	defer db.Close()
	ctx := context.Background()
	if err := db.InsertImage(ctx, image.Image{ID: "sha256:debian", Name: "debian", Layers: []image.Layer{{Digest: "sha256:layer", Dir: "layers/debian"}}}); err != nil {
		t.Fatal(err)
	}
	if err := db.InsertKernel(ctx, kernel.Kernel{Name: "linux", Dir: "kernels/linux", Default: true}); err != nil {
		t.Fatal(err)
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
	log := slog.New(slog.NewTextHandler(w.log, nil))
	cgroups, err := vmm.NewCgroups(w.installed)
	if err != nil {
		w.t.Fatal(err)
	}
	dirs := resource.NewDir(vm.KindDir, w.state, false, "vms")
	runDirs := resource.NewDir(vm.KindRunDir, w.run, true, "vm")
	uppers, works := disk.New(disk.KindUpper, w.state), disk.New(disk.KindWork, w.state)
	var kinds []resource.Kind
	for _, k := range []resource.Kind{dirs, runDirs, cgroups, uppers, works} {
		kinds = append(kinds, gatedKind{k, g, w.fail})
	}
	ledger := resource.New(st, "this boot", log, kinds...)
	w.ops = operation.NewRegistry()
	w.svc = vm.New(vm.Config{
		Store: st, Assets: assets{w.lacking}, Ledger: ledger, RunDirs: runDirs, Cgroups: cgroups, Uppers: uppers, Works: works,
		Network: network.New(network.Config{Installation: w.installed, Ledger: ledger, Settings: w.db, Log: log}),
		Driver:  driver{w.machines, g}, Operations: w.ops, StateDir: w.state, Log: log,
		Defaults: api.CreateVM{Image: "debian", CPUs: 1, Memory: 64 << 20, RootSize: 64 << 20, DiskSize: new(int64(64 << 20)), Network: api.NetworkNone},
	})
	if w.grace > 0 {
		w.svc.SetLeaseGrace(w.grace)
	}
	ctx := context.Background()
	alive, err := w.svc.Alive(ctx)
	if err == nil {
		err = ledger.Recover(ctx, func(owner string) bool { return alive[owner] })
	}
	if err != nil && passages == 0 {
		w.t.Errorf("recovery: %v", err)
	}
	return w.svc.Recover(ctx)
}

// down ends the daemon, in order or, where its gate was set so, long dead.
func (w *world) down() {
	w.svc.Close()
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

// clear deletes every VM and looks for what is left.
func (w *world) clear() {
	ctx := context.Background()
	vms, err := w.svc.List(ctx, 0)
	if err != nil {
		w.t.Error(err)
	}
	for _, v := range vms {
		if err := w.wait(w.svc.Delete(ctx, 0, v.ID, true)); err != nil && api.CodeOf(err) != api.CodeNotFound {
			w.t.Errorf("delete --force VM %q, which is %s: %v", v.Name, v.State, err)
		}
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
	w.await("every VMM ends", func() bool { return len(w.machines.running()) == 0 })
	cgroups, err := vmm.NewCgroups(w.installed)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(w.state, "vms"), filepath.Join(w.run, "vm"), cgroups.Path("banger-" + w.installed)} {
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

// assets implements vm.Assets with paths that nothing opens.
type assets struct{ lacking error }

func (assets) Image(context.Context, uint32, string) (string, error) { return "sha256:debian", nil }

func (a assets) Disks(context.Context, string) ([]string, error) {
	return []string{"/layers/debian/layer.ext4"}, a.lacking
}

func (assets) Import(_ context.Context, _ uint32, _ string, tar io.Reader, _ api.Reporter) error {
	text, err := io.ReadAll(io.LimitReader(tar, 1<<20))
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("import image: it is empty")
	}
	return err
}

func (assets) Kernel(context.Context, string) (string, error) { return "linux", nil }

func (a assets) Boot(context.Context, string) (vm.Boot, error) {
	return vm.Boot{Vmlinux: "/kernels/linux/vmlinux", Initramfs: "/kernels/linux/initramfs", Modules: "/kernels/linux/modules.ext4"}, a.lacking
}
