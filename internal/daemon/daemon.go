// Package daemon puts bangerd together: Run is the one place where the parts meet.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/agentbin"
	"banger/internal/config"
	"banger/internal/disk"
	"banger/internal/doctor"
	"banger/internal/failpoint"
	"banger/internal/identity"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/operation"
	"banger/internal/registry"
	"banger/internal/resource"
	"banger/internal/server"
	"banger/internal/space"
	"banger/internal/systemd"
	"banger/internal/usage"
	"banger/internal/vm"
)

// shutdownPatience is what operations under way are given when the daemon stops.
const shutdownPatience = 20 * time.Second

// networkLinger is how long the network stays after the last VM.
const networkLinger = 5 * time.Second

// Run serves one installation until ctx ends; ready is called when it answers.
// VMs run on when it returns.
func Run(ctx context.Context, paths config.Paths, version string, ready func()) error {
	ctx, shutdown := context.WithCancel(ctx)
	defer shutdown()
	cfg, err := config.Load(paths.Config)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.CodePermissionDenied, "start bangerd: it must run as root").WithHint("sudo bangerd")
	}
	if err := failpoint.FromEnv(); err != nil {
		return api.Errorf(api.CodeInvalid, "start bangerd: %w", err)
	}
	lock, err := prepare(paths)
	if err != nil {
		return err
	}
	defer lock.Close()
	log, closeLog, err := openLog(filepath.Join(paths.State, "bangerd.log"))
	if err != nil {
		return err
	}
	defer closeLog()
	log.Info("bangerd starts", "version", version, "pid", os.Getpid())

	id, minted, err := identity.Load(paths.State, paths.Run)
	if err != nil {
		return fmt.Errorf("read the installation's identity: %w", err)
	}
	db, err := openDatabase(ctx, filepath.Join(paths.State, "banger.db"), log)
	if err != nil {
		return err
	}
	defer db.Close()
	bootID, err := linux.BootID()
	if err != nil {
		return fmt.Errorf("read the host's boot id: %w", err)
	}
	host, err := newParts(paths, id.ID)
	if err != nil {
		return err
	}
	ledger := resource.New(db, bootID, log, host.kinds...)
	agent, err := agentbin.Binary()
	if err != nil {
		return err
	}
	room := space.Room{Dir: paths.State, Reserve: int64(cfg.Storage.Reserve)}
	images := image.New(image.Config{Ledger: ledger, Dirs: host.dirs, Store: db, Room: room, MaxSize: int64(cfg.Image.MaxSize), MaxEntries: cfg.Image.MaxEntries, MaxMemory: int64(cfg.Image.MaxMemory),
		Registries: &registry.Client{Config: registry.Config{Mirrors: cfg.Image.Mirrors, Insecure: cfg.Image.Insecure}}})
	kernels := kernel.New(kernel.Config{Ledger: ledger, Dirs: host.dirs, Store: db, Room: room, Agent: agent})
	operations := operation.NewRegistry()
	net := network.New(network.Config{
		Installation: id.ID, Ledger: ledger, Settings: db, Subnet: cfg.Network.Subnet.Prefix, Allow: cfg.Network.Allow,
		Resolvers: cfg.Network.Resolvers, Copy: filepath.Join(paths.State, "network.json"), Linger: networkLinger, Log: log,
	})
	engines := engines(cfg)
	vms := vm.New(vm.Config{
		Store: db, Assets: assets{images, kernels}, Ledger: ledger, Dirs: host.dirs, RunDirs: host.runDirs, Cgroups: host.cgroups, Uppers: host.uppers, Works: host.works,
		Bases: host.bases, Cows: host.cows, Snapshots: disk.NewSnapshots(ledger, id.ID, paths.State, host.mapper), Network: net,
		UIDs: vm.UIDs(vmUIDs(cfg, id.ID)), Engines: engines, Operations: operations, Room: room, StateDir: paths.State, Installation: id.ID, Agent: kernels.Build(), Log: log,
		Defaults: api.CreateVM{Image: cfg.VM.Image, VMM: api.VMM(cfg.VM.VMM), CPUs: cfg.VM.CPUs, Memory: int64(cfg.VM.Memory), RootDisk: api.RootDisk(cfg.VM.RootDisk), RootSize: int64(cfg.VM.RootSize), DiskSize: (*int64)(&cfg.VM.DiskSize), Network: api.Network(cfg.VM.Network), NAT: &cfg.VM.NAT, IO: (*api.IO)(&cfg.VM.IO)},
	})
	if minted {
		if err := ledger.ForgetVolatile(ctx); err != nil {
			return err
		}
	}
	if err := id.Keep(paths.State, paths.Run); err != nil {
		return err
	}
	if err := adopt(ctx, images, kernels, vms, net, log); err != nil {
		return err
	}
	sources := []source{vms, images, kernels, net}
	if err := recoverAll(ctx, ledger, sources); err != nil {
		log.Error("recovery is incomplete; the next start tries again", "err", err)
	}
	if err := host.cgroups.KeepScopes(); err != nil {
		log.Warn("hold the scopes of VMs", "err", err)
	}
	if err := vms.Recover(ctx); err != nil {
		return err
	}
	if err := net.Settle(ctx); err != nil {
		log.Error("bring the network up to date; it is tried again", "err", err)
	}
	var keeping sync.WaitGroup
	keeping.Go(func() { net.Run(ctx) })
	defer keeping.Wait()
	defer shutdown()
	listener, closeSocket, err := listen(paths, cfg.Group)
	if err != nil {
		return err
	}
	used := usage.New(usage.Config{
		StateDir: paths.State, Room: room, Images: images, Kernels: kernels, VMs: vms, Caches: []usage.Cache{host.uppers, host.works, host.bases, vms},
	})
	system := api.System{
		Version: version, Installation: id.ID, PID: os.Getpid(), Started: time.Now(), StateDir: paths.State, RunDir: paths.Run,
	}
	look := &looker{
		version: version,
		config: doctor.Config{
			Paths: paths, Group: cfg.Group, Served: true, Drivers: engines, Room: room, Network: net, Ledger: ledger,
			Database: func(ctx context.Context) []api.Finding {
				return checkDatabase(ctx, filepath.Join(paths.State, "banger.db"))
			},
			VMs: func(ctx context.Context) ([]api.VM, error) { return vms.List(ctx, 0) },
		},
		repairer: doctor.Repairer{
			Tend: func(ctx context.Context) error {
				alive, err := living(ctx, sources)
				if err != nil {
					return err
				}
				return ledger.Tend(ctx, alive)
			},
			Share: func() error { return openTo(paths.Socket(), cfg.Group) },
		},
	}
	handler := server.New(server.Config{
		VMs: vms, Images: images, Kernels: kernels, Usage: used, Doctor: look, Operations: operations, Log: log, Shutdown: shutdown,
		System: func() api.System { return system },
	})
	keeping.Go(func() { keep(ctx, ledger, sources, log) })
	ready()
	notify(log, systemd.Ready)
	keeping.Go(func() { watchdog(ctx, paths.Socket(), log) })
	log.Info("serving", "socket", paths.Socket(), "installation", id.ID)
	err = server.Serve(ctx, listener, handler, log)
	log.Info("bangerd stops", "err", err)
	notify(log, systemd.Stopping)
	vms.Close()
	shutdown()
	keeping.Wait()
	patience, cancel := context.WithTimeout(context.Background(), shutdownPatience)
	defer cancel()
	return errors.Join(err, operations.Close(patience), closeSocket())
}

// prepare makes the installation's directories and takes its lock.
func prepare(paths config.Paths) (*os.File, error) {
	for _, dir := range []string{
		paths.State, filepath.Join(paths.State, "vms"), filepath.Join(paths.State, "layers"), filepath.Join(paths.State, "kernels"),
		paths.Run, filepath.Join(paths.Run, "vm"),
	} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, noDirectory(paths, err)
		}
	}
	lock, holder, err := linux.Lock(paths.Lock(), fmt.Sprintf("%d\n%s\n", os.Getpid(), paths.Run))
	if errors.Is(err, linux.ErrLocked) {
		return nil, served(paths, holder)
	}
	if err != nil {
		return nil, noDirectory(paths, err)
	}
	return lock, nil
}

// noDirectory is the error for directories in which the daemon cannot keep its things.
func noDirectory(paths config.Paths, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return api.Errorf(api.CodeNoSpace, "start bangerd: %w", err).WithHint("free space for %s and %s", paths.State, paths.Run)
	}
	return api.Errorf(api.CodeUnavailable, "start bangerd: %w", err).
		WithHint("bangerd needs directories that it may write to; BANGER_STATE_DIR (%s) and BANGER_RUN_DIR (%s) name them", paths.State, paths.Run)
}

// served is the error for a state directory whose lock is held by the daemon that
// wrote holder into it. Only who has the same run directory will find that daemon.
func served(paths config.Paths, holder string) error {
	pid, run, _ := strings.Cut(strings.TrimSpace(holder), "\n")
	if run != "" && run != paths.Run {
		return api.Errorf(api.CodeUnavailable, "start bangerd: process %s serves %s already, on %s", pid, paths.State, run).
			WithHint("BANGER_RUN_DIR=%s, or another BANGER_STATE_DIR for an installation of its own", run)
	}
	return api.Errorf(api.CodeConflict, "start bangerd: process %s serves %s already", pid, paths.State).
		WithHint("banger system status; if it does not answer: kill %s, VMs survive that", pid)
}

// assets implements vm.Assets.
type assets struct {
	images  *image.Manager
	kernels *kernel.Manager
}

func (a assets) Image(ctx context.Context, uid uint32, name string) (string, error) {
	img, err := a.images.ForVM(ctx, uid, name)
	return img.ID, err
}

func (a assets) RunConfig(ctx context.Context, id string) (api.ImageConfig, error) {
	return a.images.RunConfig(ctx, id)
}

func (a assets) Disks(ctx context.Context, id string) ([]string, error) {
	return a.images.Disks(ctx, id)
}

func (a assets) Base(ctx context.Context, id string) (vm.Base, error) {
	b, err := a.images.Base(ctx, id)
	return vm.Base(b), err
}

func (a assets) Bases() ([]string, error) { return a.images.Bases() }

func (a assets) ImageFree(ctx context.Context, uid uint32, name string) error {
	return a.images.Free(ctx, uid, name)
}

func (a assets) Stackable(ctx context.Context, id string) (bool, error) {
	return a.images.Stackable(ctx, id)
}

func (a assets) Commit(ctx context.Context, uid uint32, name, base string, whole bool, tar io.Reader, report api.Reporter) error {
	_, err := a.images.Commit(ctx, uid, name, base, whole, tar, report)
	return err
}

func (a assets) Kernel(ctx context.Context, name string) (string, error) {
	k, err := a.kernels.Get(ctx, name)
	return k.Name, err
}

func (a assets) Boot(ctx context.Context, name string) (vm.Boot, error) {
	b, err := a.kernels.Boot(ctx, name)
	return vm.Boot{Vmlinux: b.Vmlinux, Initramfs: b.Initramfs, Modules: b.Modules}, err
}
