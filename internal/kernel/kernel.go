// Package kernel keeps the bundles from which VMs boot: a kernel, the modules that
// an initramfs needs, and a read-only disk with all of its modules. A bundle comes
// from the host's package manager or from a .deb that a user brings.
package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"

	"github.com/google/renameio/v2"
)

// Kernel is a bundle.
type Kernel struct {
	Name, Release, Source string
	Dir                   string // its directory's name in the ledger
	Default               bool
	Created               time.Time
	Size                  int64 // bytes on the disk
}

// Store keeps the bundles.
type Store interface {
	InsertKernel(context.Context, Kernel) error // already_exists; the first one becomes the default
	Kernels(context.Context) ([]Kernel, error)
	DeleteKernel(ctx context.Context, name string) error // conflict, naming the VMs that use it; not_found
}

// Config is what a Manager is made of.
type Config struct {
	Ledger *resource.Ledger
	Dirs   *resource.Dir
	Store  Store
	Agent  []byte // the agent's program
}

// Manager makes, finds and removes bundles. It is safe for concurrent use.
type Manager struct {
	Config
	agentHash string
}

// New returns a Manager.
func New(c Config) *Manager {
	sum := sha256.Sum256(c.Agent)
	return &Manager{Config: c, agentHash: hex.EncodeToString(sum[:6])}
}

// Boot is the files from which a VM boots, by absolute path.
type Boot struct{ Vmlinux, Initramfs, Modules string }

const dirKind = "dir"

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`)

// Import makes a bundle of a Debian package that is read from r.
func (m *Manager) Import(ctx context.Context, name string, r io.Reader, report api.Reporter) (Kernel, error) {
	if !validName.MatchString(name) {
		return Kernel{}, api.Errorf(api.CodeInvalid, "import kernel %q: not a valid name", name).
			WithHint("use up to 100 of A-Z, a-z, 0-9, and ._+-")
	}
	return m.build(ctx, name, "file", report, func(string) (io.ReadCloser, error) { return io.NopCloser(r), nil })
}

// build makes a bundle of the package that open opens, which may use the given
// directory. An empty name becomes the kernel's release.
func (m *Manager) build(ctx context.Context, name, source string, report api.Reporter, open func(dir string) (io.ReadCloser, error)) (k Kernel, err error) {
	id := resource.RandomName(6)
	ref, err := m.Ledger.Acquire(ctx, "kernel/"+id, dirKind, "kernels/"+id, nil)
	if err != nil {
		return Kernel{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Ledger.Release(context.WithoutCancel(ctx), ref))
		}
	}()
	dir := m.Dirs.Path(ref.Name)
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return Kernel{}, err
	}
	pkg, err := open(work)
	if err != nil {
		return Kernel{}, err
	}
	defer pkg.Close()
	report(api.Progress{Step: "unpack kernel"})
	release, err := assemble(pkg, dir, work)
	if err != nil {
		return Kernel{}, err
	}
	if err := os.RemoveAll(work); err != nil {
		return Kernel{}, err
	}
	if name == "" {
		name = release
	}
	k = Kernel{Name: name, Release: release, Source: source, Dir: ref.Name, Created: time.Now()}
	for _, file := range []string{"vmlinux", "modules.cpio", "modules.ext4"} {
		n, err := linux.Allocated(filepath.Join(dir, file))
		if err != nil {
			return Kernel{}, err
		}
		k.Size += n
	}
	if err := m.Store.InsertKernel(ctx, k); err != nil {
		return Kernel{}, err
	}
	return m.Get(ctx, name)
}

// assemble makes the files of a bundle in dir of a package, unpacking it in work.
func assemble(pkg io.Reader, dir, work string) (release string, err error) {
	root, err := os.OpenRoot(work)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if err := unpackDeb(pkg, root); err != nil {
		return "", err
	}
	releases, err := filepath.Glob(filepath.Join(work, "lib/modules/*"))
	if err != nil || len(releases) != 1 {
		return "", api.Errorf(api.CodeInvalid, "import kernel: the package has modules of %d kernels", len(releases)).
			WithHint("give a linux-image package that contains its modules")
	}
	release = filepath.Base(releases[0])
	image, err := os.ReadFile(filepath.Join(work, "vmlinuz"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", api.Errorf(api.CodeInvalid, "import kernel: no boot/vmlinuz-* in the package").WithHint("give a linux-image package")
	}
	if err != nil {
		return "", err
	}
	vmlinux, err := extractVmlinux(image)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), vmlinux, 0o440); err != nil {
		return "", err
	}
	modules, err := readTree(releases[0])
	if err != nil {
		return "", err
	}
	if err := create(filepath.Join(dir, "modules.cpio"), func(f *os.File) error { return modules.writeBootModules(f) }); err != nil {
		return "", err
	}
	return release, create(filepath.Join(dir, "modules.ext4"), func(f *os.File) error { return writeModulesDisk(f, work, release) })
}

func create(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o440)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}

// List returns all bundles, oldest first.
func (m *Manager) List(ctx context.Context) ([]Kernel, error) { return m.Store.Kernels(ctx) }

// Get returns the bundle called name; the default one for an empty name.
func (m *Manager) Get(ctx context.Context, name string) (Kernel, error) {
	kernels, err := m.Store.Kernels(ctx)
	if err != nil {
		return Kernel{}, err
	}
	for _, k := range kernels {
		if k.Name == name || name == "" && k.Default {
			return k, nil
		}
	}
	if name == "" {
		return Kernel{}, api.Errorf(api.CodeNotFound, "there is no kernel yet").WithHint("banger kernel pull")
	}
	return Kernel{}, api.Errorf(api.CodeNotFound, "kernel %q: no such kernel", name).WithHint("banger kernel list, banger kernel pull")
}

// Remove removes a bundle that no VM uses.
func (m *Manager) Remove(ctx context.Context, name string) error {
	if name == "" {
		return api.Errorf(api.CodeInvalid, "remove kernel: no name")
	}
	k, err := m.Get(ctx, name)
	if err != nil {
		return err
	}
	if err := m.Store.DeleteKernel(ctx, name); err != nil {
		return err
	}
	return m.Ledger.ReleaseOwner(ctx, ownerOf(k))
}

func ownerOf(k Kernel) string { return "kernel/" + filepath.Base(k.Dir) }

// Alive returns the ledger's owners that are bundles, for resource.Ledger.Recover.
func (m *Manager) Alive(ctx context.Context) (map[string]bool, error) {
	kernels, err := m.Store.Kernels(ctx)
	alive := map[string]bool{}
	for _, k := range kernels {
		alive[ownerOf(k)] = true
	}
	return alive, err
}

// Boot returns the files of the bundle called name. The initramfs carries this
// daemon's agent, and is made when it is not there yet.
func (m *Manager) Boot(ctx context.Context, name string) (Boot, error) {
	k, err := m.Get(ctx, name)
	if err != nil {
		return Boot{}, err
	}
	dir := m.Dirs.Path(k.Dir)
	b := Boot{
		Vmlinux:   filepath.Join(dir, "vmlinux"),
		Initramfs: filepath.Join(dir, "initramfs-"+m.agentHash+".cpio"),
		Modules:   filepath.Join(dir, "modules.ext4"),
	}
	if _, err := os.Stat(b.Initramfs); err == nil {
		return b, nil
	}
	return b, m.writeInitramfs(filepath.Join(dir, "modules.cpio"), b.Initramfs)
}

func (m *Manager) writeInitramfs(modules, path string) error {
	in, err := os.Open(modules)
	if err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	defer in.Close()
	out, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o440))
	if err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	defer out.Cleanup()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	if err := writeInit(out, m.Agent); err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	return out.CloseAtomicallyReplace()
}
