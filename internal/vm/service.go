package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/operation"
	"banger/internal/resource"
	"banger/internal/space"
	"banger/internal/vmm"
)

// DefaultStopTimeout is what a guest is given to power off.
const DefaultStopTimeout = 10 * time.Second

// Config is what a Service is made of.
type Config struct {
	Store        Store
	Assets       Assets
	Ledger       *resource.Ledger
	Dirs         *resource.Dir // the kind KindDir, rooted in StateDir
	RunDirs      *resource.Dir
	Cgroups      *vmm.Cgroups
	Uppers       *disk.Disks
	Works        *disk.Disks
	Bases        *disk.Disks
	Cows         *disk.Disks
	Snapshots    *disk.Snapshots
	Network      *network.Network
	UIDs         UIDs // for the VMMs
	Engines      vmm.Engines
	Operations   *operation.Registry
	Room         space.Room // for the disks
	StateDir     string
	Installation string // the short id, which is in the names of what bears our tag
	Agent        string // names the build of the agent that machines boot with
	Defaults     api.CreateVM
	Log          *slog.Logger
}

// Service is what the server calls. A caller is a uid; root (0) sees every VM, a
// user their own.
type Service struct {
	store        Store
	assets       Assets
	ledger       *resource.Ledger
	dirs         *resource.Dir
	network      *network.Network
	runDirs      *resource.Dir
	cgroups      *vmm.Cgroups
	uppers       *disk.Disks
	works        *disk.Disks
	bases        *disk.Disks
	cows         *disk.Disks
	engines      vmm.Engines
	ops          *operation.Registry
	room         space.Room
	stateDir     string
	installation string
	agent        string
	defaults     api.CreateVM
	log          *slog.Logger

	snapshots *disk.Snapshots
	filling   chan struct{} // has room for one who makes a base

	capabilities []capability
	configs      configs
	leaseGrace   time.Duration

	restarted map[string]runSpec // the VMs that ran when the host was restarted; of use to Recover

	mu     sync.Mutex
	owners map[string]*owner // by id

	closed bool
}

// New returns a Service that knows no VMs yet: call Recover.
func New(c Config) *Service {
	s := &Service{
		store: c.Store, assets: c.Assets, ledger: c.Ledger, dirs: c.Dirs, network: c.Network, runDirs: c.RunDirs, cgroups: c.Cgroups,
		uppers: c.Uppers, works: c.Works, bases: c.Bases, cows: c.Cows, snapshots: c.Snapshots, filling: make(chan struct{}, 1), engines: c.Engines,
		ops: c.Operations, room: c.Room, stateDir: c.StateDir, agent: c.Agent, installation: c.Installation, defaults: c.Defaults, log: c.Log, leaseGrace: leaseGrace, restarted: map[string]runSpec{}, owners: map[string]*owner{},
	}
	s.capabilities = []capability{
		&confinement{svc: s, uids: c.UIDs}, personality{}, workDisk{svc: s}, imageConfig{svc: s}, onNetwork{svc: s, network: c.Network}, sshAccess{svc: s},
	}
	return s
}

// Alive returns the ledger's owners that are VMs, for resource.Ledger.Recover.
func (s *Service) Alive(ctx context.Context) (map[string]bool, error) {
	recs, err := s.store.VMs(ctx)
	alive := map[string]bool{}
	for _, r := range recs {
		if r.Wanted != WantDeleted {
			alive[ownerOf(r.ID)], alive[runOwnerOf(r.ID)] = true, true
		}
	}
	return alive, err
}

// Recover makes the VMs of the store known, after the ledger has recovered: those
// whose VMM lives are adopted, the others are stopped, half-deleted ones go.
func (s *Service) Recover(ctx context.Context) error {
	recs, err := s.store.VMs(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if o := newOwner(s, rec); s.resume(ctx, o) {
			s.add(o)
		}
	}
	return nil
}

// resume finds out what has become of a VM since an earlier daemon had it. It reports
// whether there still is one. What does not succeed for one VM is no matter of the
// others.
func (s *Service) resume(ctx context.Context, o *owner) (exists bool) {
	rec := o.rec
	if rec.Wanted == WantDeleted {
		err := s.destroy(ctx, rec, nil)
		if err != nil { // it has its name still, and can be deleted again
			s.log.Error("finish deletion", "vm", rec.Name, "err", err)
			o.record(WantDeleted, err.Error())
		}
		return err != nil
	}
	if rec.Wanted == WantSuspended {
		s.resumeSuspended(ctx, o)
		return true
	}
	l, err := s.adopt(ctx, rec)
	if err == nil {
		s.log.Info("adopted", "vm", rec.Name, "pid", l.inst.PID())
		s.keepHandles(ctx, rec, l.inst)
		o.live, o.state = l, api.VMRunning
		want := WantRunning
		if l.isPaused() {
			o.state, want = api.VMPaused, WantPaused
		}
		o.record(want, "")
		if err := s.dropSnapshots(rec.ID); err != nil { // it was to be suspended, or has woken
			s.log.Error("remove a snapshot that is of no use", "vm", rec.Name, "err", err)
		}
		return true
	}
	s.log.Info("not running", "vm", rec.Name, "reason", err)
	lastError := rec.LastError
	if rec.Wanted == WantRunning || rec.Wanted == WantPaused {
		lastError = s.deathMeanwhile(ctx, rec)
	}
	if err := s.end(rec); err != nil {
		s.log.Error("release what a dead VM held", "vm", rec.Name, "err", err)
		lastError = err.Error()
	}
	o.record(WantStopped, lastError)
	if o.rec.complete() { // whether the host has room for its address still, its start finds out
		return true
	}
	if settled, err := s.settle(ctx, o.rec); err != nil {
		s.log.Error("complete VM; its next start tries again", "vm", rec.Name, "err", err)
	} else if err := o.commit(ctx, settled); err != nil {
		s.log.Error("record VM", "vm", rec.Name, "err", err)
	}
	return true
}

// resumeSuspended is resume for a VM that is suspended: a VMM that there is has written
// its snapshot, or has read it and has not gone on.
func (s *Service) resumeSuspended(ctx context.Context, o *owner) {
	rec := o.rec
	lastError := rec.LastError
	if err := s.releaseRun(rec); err != nil {
		s.log.Error("end the VMM of a suspended VM", "vm", rec.Name, "err", err)
		lastError = err.Error()
	}
	if _, _, err := s.suspended(ctx, rec.ID); err != nil {
		s.log.Error("find a snapshot", "vm", rec.Name, "err", err)
		o.record(WantStopped, fmt.Sprintf("what it was at is lost: its snapshot: %v", err))
		return
	}
	o.state = api.VMSuspended
	o.record(WantSuspended, lastError)
}

// add makes a VM known, unless the service is closed.
func (s *Service) add(o *owner) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.owners[o.id] = o
	go o.run()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.expire()
	return true
}

// forget makes a VM unknown.
func (s *Service) forget(o *owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.owners, o.id)
}

// Close ends the service. Work under way is cancelled and undone; VMs run on.
func (s *Service) Close() {
	s.mu.Lock()
	owners := slices.Collect(maps.Values(s.owners))
	s.closed = true
	s.mu.Unlock()
	for _, o := range owners {
		close(o.quit)
	}
	for _, o := range owners {
		<-o.gone
		o.mu.Lock()
		o.disarm()
		o.mu.Unlock()
	}
}

func notFound(ref string) error {
	return api.Errorf(api.CodeNotFound, "VM %q: no such VM", ref).WithHint("banger vm list")
}

// minPrefix is how many digits of an id stand for it: so many that the name of a VM
// that has gone, such as "db", does not happen to be another's id.
const minPrefix = 6

// find finds a VM that the caller may see by name, id or unique prefix of its id.
func (s *Service) find(caller uint32, ref string) (*owner, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var byPrefix []*owner
	for id, o := range s.owners {
		if caller != 0 && caller != o.uid {
			continue
		}
		if id == ref || o.name() == ref {
			return o, nil
		}
		if len(ref) >= minPrefix && strings.HasPrefix(id, ref) {
			byPrefix = append(byPrefix, o)
		}
	}
	switch len(byPrefix) {
	case 0:
		return nil, notFound(ref)
	case 1:
		return byPrefix[0], nil
	}
	return nil, api.Errorf(api.CodeInvalid, "VM %q: %d VMs have an id that begins so", ref, len(byPrefix)).WithHint("give more digits")
}

// List returns the VMs that the caller may see, oldest first.
func (s *Service) List(ctx context.Context, caller uint32) ([]api.VM, error) {
	s.mu.Lock()
	owners := slices.SortedFunc(maps.Values(s.owners), func(a, b *owner) int { return a.created.Compare(b.created) })
	s.mu.Unlock()
	vms := make([]api.VM, 0, len(owners))
	for _, o := range owners {
		if caller == 0 || caller == o.uid {
			vms = append(vms, s.view(ctx, o))
		}
	}
	return vms, nil
}

// Get returns one VM. LastError of one that runs tells what it lacks.
func (s *Service) Get(ctx context.Context, caller uint32, ref string) (api.VM, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return api.VM{}, err
	}
	return s.shown(ctx, o), nil
}

// Create makes a VM, and starts it if that is asked. A VM that was to be started
// and does not start is removed again.
func (s *Service) Create(ctx context.Context, caller uint32, req api.CreateVM) (api.VM, api.Operation, error) {
	rec, err := s.newRecord(ctx, caller, req)
	if err != nil {
		return api.VM{}, api.Operation{}, err
	}
	if err := s.store.InsertVM(ctx, rec); err != nil {
		return api.VM{}, api.Operation{}, api.About(err, "create VM %q", rec.Name)
	}
	o := newOwner(s, rec)
	if !s.add(o) {
		err := api.Errorf(api.CodeUnavailable, "create VM %q: the daemon is shutting down", rec.Name)
		return api.VM{}, api.Operation{}, errors.Join(err, s.store.DeleteVM(context.WithoutCancel(ctx), rec.ID))
	}
	op := s.ops.Start(caller, "vm.create", rec.ID, func(ctx context.Context, report api.Reporter) error {
		begin := func() error { return o.do(ctx, evStart, 0, report) }
		if !req.Start { // what it is is to be known twice from the beginning
			begin = func() error { return o.alter(ctx, s.settleIn, report) }
		}
		err := begin()
		if err != nil && !s.closing() {
			if derr := s.destroyNow(context.WithoutCancel(ctx), o); derr != nil && api.CodeOf(derr) != api.CodeNotFound {
				err = errors.Join(err, derr)
			}
			if e := api.AsError(err); e.Code == api.CodeGuest { // advice to look at the VM is of no use any more
				err = e.WithHint("the VM is removed again; what banger vm create makes and banger vm start starts keeps its console")
			}
		}
		return err
	})
	return s.view(ctx, o), op, nil
}

func (s *Service) closing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// newRecord fills the defaults in, checks what is asked for and resolves names.
func (s *Service) newRecord(ctx context.Context, caller uint32, r api.CreateVM) (Record, error) {
	r.Name = cmp.Or(r.Name, randomName())
	r.Image = cmp.Or(r.Image, s.defaults.Image)
	r.CPUs = cmp.Or(r.CPUs, s.defaults.CPUs)
	r.Memory = roundDown(cmp.Or(r.Memory, s.defaults.Memory))
	r.RootDisk = cmp.Or(r.RootDisk, s.defaults.RootDisk)
	r.VMM = cmp.Or(r.VMM, s.defaults.VMM, api.VMMAuto)
	r.RootSize = roundUp(cmp.Or(r.RootSize, s.defaults.RootSize))
	diskSize := roundUp(*cmp.Or(r.DiskSize, s.defaults.DiskSize))
	r.DiskSize = &diskSize
	r.Network = cmp.Or(r.Network, s.defaults.Network)
	if r.Network == api.NetworkNone && r.NAT != nil && *r.NAT {
		return Record{}, api.Errorf(api.CodeInvalid, "create VM %q: NAT for a VM without network", r.Name).WithHint("leave out --nat on or --net none")
	}
	nat := r.Network == api.NetworkBridge && *cmp.Or(r.NAT, s.defaults.NAT)
	total, err := linux.MemTotal()
	if err != nil {
		return Record{}, err
	}
	if err := validate(fmt.Sprintf("create VM %q", r.Name), r, total); err != nil {
		return Record{}, err
	}
	need := disk.Overhead(r.RootSize) + disk.Overhead(diskSize) + consoleMax
	if err := s.room.Admit(fmt.Sprintf("create VM %q", r.Name), need); err != nil {
		return Record{}, err
	}
	io := *cmp.Or(r.IO, s.defaults.IO)
	if err := s.checkIO(io); err != nil {
		return Record{}, fmt.Errorf("create VM %q: %w", r.Name, err)
	}
	imageID, err := s.assets.Image(ctx, caller, r.Image)
	if err != nil {
		return Record{}, fmt.Errorf("create VM %q: %w", r.Name, err)
	}
	kernel, err := s.assets.Kernel(ctx, r.Kernel)
	if err != nil {
		return Record{}, fmt.Errorf("create VM %q: %w", r.Name, err)
	}
	rec, err := s.settle(ctx, Record{
		ID: resource.RandomName(6), Name: r.Name, Owner: caller, Image: r.Image, ImageID: imageID, Kernel: kernel,
		CPUs: r.CPUs, Memory: r.Memory, RootDisk: r.RootDisk, RootSize: r.RootSize, DiskSize: diskSize, Network: r.Network, NAT: nat, IO: io, VMM: r.VMM,
		Init: r.Init, Ephemeral: r.Ephemeral, Wanted: WantStopped,
		Sync: resource.RandomName(16), MachineID: resource.RandomName(16), Created: time.Now(),
	})
	if err == nil {
		err = s.rootOf(rec).check(ctx, rec)
	}
	if err != nil {
		return Record{}, fmt.Errorf("create VM %q: %w", r.Name, err)
	}
	return rec, nil
}

// operate starts an operation on a VM.
func (s *Service) operate(caller uint32, ref, kind string, fn func(context.Context, *owner, api.Reporter) error) (api.Operation, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return api.Operation{}, err
	}
	return s.ops.Start(caller, kind, o.id, func(ctx context.Context, report api.Reporter) error {
		return fn(ctx, o, report)
	}), nil
}

// Start starts a stopped VM, and has a suspended one go on.
func (s *Service) Start(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.start", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.do(ctx, evStart, 0, report)
	})
}

// Stop stops a running VM: by its agent, then by its power button, and when the
// timeout (the default where it is 0) is over, by killing it. A reason, which may be
// empty, is what LastError then says.
func (s *Service) Stop(_ context.Context, caller uint32, ref string, timeout time.Duration, reason string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.stop", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.submit(&command{ctx: ctx, event: evStop, timeout: cmp.Or(timeout, DefaultStopTimeout), reason: reason, report: report})
	})
}

// Kill ends a VM at once that runs, or is starting or stopping; one that is suspended
// forgets what it was at.
func (s *Service) Kill(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.kill", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.do(ctx, evKill, 0, report)
	})
}

// Delete removes a VM and all that is its own; with force in any state.
func (s *Service) Delete(_ context.Context, caller uint32, ref string, force bool) (api.Operation, error) {
	return s.operate(caller, ref, "vm.delete", func(ctx context.Context, o *owner, report api.Reporter) error {
		if force {
			return s.destroyNow(ctx, o)
		}
		return o.do(ctx, evDelete, 0, report)
	})
}

func (s *Service) destroyNow(ctx context.Context, o *owner) error {
	return o.do(ctx, evDestroy, 0, nil)
}

// Lease holds an ephemeral VM until release is called.
func (s *Service) Lease(_ context.Context, caller uint32, ref string) (release func(), err error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return nil, err
	}
	return o.hold()
}

// Agent returns the transport to a running VM's agent.
func (s *Service) Agent(ctx context.Context, caller uint32, ref string) (http.RoundTripper, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return nil, err
	}
	l, err := o.current()
	if err != nil {
		return nil, err
	}
	return l.agent(ctx)
}
