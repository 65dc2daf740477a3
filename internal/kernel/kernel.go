// Package kernel keeps the bundles from which VMs boot: a kernel, the modules that
// an initramfs needs, and a read-only disk with all of its modules. A bundle comes
// from the host's package manager or from a .deb that a user brings.
package kernel

import (
	"cmp"
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
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/intake"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/space"

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
	SetDefaultKernel(ctx context.Context, name string) error // not_found
	DeleteKernel(ctx context.Context, name string) error     // conflict, naming the VMs that use it; not_found
}

// Config is what a Manager is made of.
type Config struct {
	Ledger *resource.Ledger
	Dirs   *resource.Dir
	Store  Store
	Room   space.Room
	Agent  []byte // the agent's program
}

// Manager makes, finds and removes bundles. It is safe for concurrent use.
type Manager struct {
	Config
	agentHash string
	pulling   chan struct{} // holds one while a pull is under way
}

// New returns a Manager.
func New(c Config) *Manager {
	sum := sha256.Sum256(c.Agent)
	return &Manager{Config: c, agentHash: hex.EncodeToString(sum[:6]), pulling: make(chan struct{}, 1)}
}

// Boot is the files from which a VM boots, by absolute path.
type Boot struct{ Vmlinux, Initramfs, Modules string }

const (
	dirKind = "dir"

	// importPatience bounds the making of a bundle of a package, its arrival included.
	importPatience = 20 * time.Minute

	// buildSpace is what a bundle and the making of it take at least, in bytes: that of
	// Debian's kernel for virtual machines, which is a small one.
	buildSpace = 256 << 20

	// keptInitramfs is how many initramfs a bundle keeps, for daemons of other versions.
	keptInitramfs = 3
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`)

// Import makes a bundle of what is read from r: a Debian package, the archive that the
// kernel's own build makes, or a vmlinux or bzImage that tells its configuration. What is
// no distribution's has to have what banger needs, else it is unsupported. It ends with ctx, also
// where r blocks. Errors: invalid, unsupported, already_exists, no_space.
func (m *Manager) Import(ctx context.Context, name string, r io.Reader, report api.Reporter) (Kernel, error) {
	if !validName.MatchString(name) {
		return Kernel{}, api.Errorf(api.CodeInvalid, "import kernel %q: not a valid name", name).
			WithHint("use up to 100 of A-Z, a-z, 0-9, and ._+-")
	}
	kernels, err := m.Store.Kernels(ctx)
	if err != nil {
		return Kernel{}, err
	}
	if slices.ContainsFunc(kernels, func(k Kernel) bool { return k.Name == name }) { // before all is read
		return Kernel{}, api.Errorf(api.CodeAlreadyExists, "import kernel %q: a kernel of that name exists", name).
			WithHint("banger kernel rm %s, or choose another name", name)
	}
	return m.build(ctx, name, "file", report, func(context.Context, string) ([]io.ReadCloser, error) {
		return []io.ReadCloser{io.NopCloser(r)}, nil
	})
}

// build makes a bundle of the packages that open opens, which may use the given
// directory.
func (m *Manager) build(ctx context.Context, name, source string, report api.Reporter, open func(ctx context.Context, dir string) ([]io.ReadCloser, error)) (k Kernel, err error) {
	ctx, cancel := context.WithTimeout(ctx, importPatience)
	defer cancel()
	if err := m.Room.Admit(fmt.Sprintf("import kernel %q", name), buildSpace); err != nil {
		return Kernel{}, err
	}
	id := resource.RandomName(6)
	ref, err := m.Ledger.Acquire(ctx, "kernel/"+id, dirKind, "kernels/"+id, nil)
	if err != nil {
		return Kernel{}, explain(ctx, name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(explain(ctx, name, err), m.Ledger.Release(context.WithoutCancel(ctx), ref))
		}
	}()
	dir := m.Dirs.Path(ref.Name)
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return Kernel{}, err
	}
	packages, err := open(ctx, work)
	defer func() {
		for _, p := range packages {
			p.Close()
		}
	}()
	if err != nil {
		return Kernel{}, err
	}
	report(api.Progress{Step: "unpack kernel"})
	release, err := assemble(ctx, packages, dir, work)
	if err != nil {
		return Kernel{}, err
	}
	if err := os.RemoveAll(work); err != nil {
		return Kernel{}, err
	}
	if err := failpoint.Pass("kernel", "assembled"); err != nil {
		return Kernel{}, err
	}
	k = Kernel{Name: name, Release: release, Source: source, Dir: ref.Name, Created: time.Now()}
	for _, file := range []string{"vmlinux", "modules.cpio", "modules.ext4"} {
		n, err := linux.Allocated(filepath.Join(dir, file))
		if err != nil {
			return Kernel{}, err
		}
		k.Size += n
	}
	if err := resource.WriteCopy(m.copyPath(k.Dir), kernelCopy{copySchema, k}); err != nil {
		return Kernel{}, err
	}
	if err := m.Store.InsertKernel(ctx, k); err != nil {
		return Kernel{}, err
	}
	_ = m.keepCopies(context.WithoutCancel(ctx)) // whether it is the default; the next start does it otherwise
	// From here on the bundle is the store's: no error may take its directory away.
	if stored, err := m.Get(context.WithoutCancel(ctx), name); err == nil {
		k = stored
	}
	return k, nil
}

// explain says what an error is about, and gives one that is not the package's its code.
func explain(ctx context.Context, name string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("import kernel %q: %w", name, context.Cause(ctx))
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.CodeNoSpace, "import kernel %q: %w", name, err).WithHint("%s", space.Hint)
	}
	if strings.HasPrefix(err.Error(), "pull kernel: ") { // what apt-get said
		return err
	}
	return api.About(err, "import kernel %q", name)
}

// assemble makes the files of a bundle in dir of packages, unpacking them in work.
func assemble(ctx context.Context, packages []io.ReadCloser, dir, work string) (release string, err error) {
	root, err := os.OpenRoot(work)
	if err != nil {
		return "", err
	}
	defer root.Close()
	custom := false
	for _, p := range packages {
		in := intake.UntilDone(ctx, p)
		c, err := unpack(in, root)
		custom = custom || c
		in.Close()
		if err == nil {
			err = failpoint.Pass("kernel", "unpacked")
		}
		if err != nil {
			return "", err
		}
	}
	image, err := os.ReadFile(filepath.Join(work, "vmlinuz"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", api.Errorf(api.CodeInvalid, "no boot/vmlinuz-* in the package").WithHint("give a linux-image package")
	}
	if err != nil {
		return "", err
	}
	vmlinux, err := extractVmlinux(image)
	if err != nil {
		return "", err
	}
	var modules *tree
	if custom {
		release, modules, err = customise(vmlinux, work, runtime.GOARCH)
	} else {
		release, modules, err = packaged(work)
	}
	if err != nil {
		return "", err
	}
	if !validName.MatchString(release) {
		return "", api.Errorf(api.CodeInvalid, "%q is not a kernel's release", release)
	}
	err = create(filepath.Join(dir, "vmlinux"), func(f *os.File) error {
		_, err := f.Write(vmlinux)
		return err
	})
	if err != nil {
		return "", err
	}
	if err := create(filepath.Join(dir, "modules.cpio"), func(f *os.File) error { return modules.writeBootModules(f) }); err != nil {
		return "", err
	}
	return release, create(filepath.Join(dir, "modules.ext4"), func(f *os.File) error { return writeModulesDisk(ctx, f, work, release) })
}

// packaged finds the modules of a distribution's kernel, which was unpacked in work.
func packaged(work string) (release string, t *tree, err error) {
	releases, err := filepath.Glob(filepath.Join(work, "lib/modules/*"))
	if err != nil || len(releases) != 1 {
		return "", nil, api.Errorf(api.CodeInvalid, "the package has modules of %d kernels", len(releases)).
			WithHint("give a linux-image package that contains its modules")
	}
	t, err = readTree(releases[0])
	return filepath.Base(releases[0]), t, err
}

// create makes a file that is on the disk when it returns.
func create(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o440)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = failpoint.Pass("kernel", filepath.Base(path))
	}
	return errors.Join(err, f.Close())
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
		return Kernel{}, api.Errorf(api.CodeNotFound, "there is no kernel yet").Missing("kernel", "").WithHint("banger kernel pull")
	}
	return Kernel{}, api.Errorf(api.CodeNotFound, "kernel %q: no such kernel", name).Missing("kernel", name).
		WithHint("banger kernel list, banger kernel pull")
}

// SetDefault makes a bundle the one that VMs get for which none is named.
func (m *Manager) SetDefault(ctx context.Context, name string) (Kernel, error) {
	if name == "" {
		return Kernel{}, api.Errorf(api.CodeInvalid, "default kernel: no name")
	}
	k, err := m.Get(ctx, name)
	if err != nil {
		return Kernel{}, err
	}
	if err := m.Store.SetDefaultKernel(ctx, name); err != nil {
		return Kernel{}, api.About(err, "default kernel %q", name)
	}
	_ = m.keepCopies(context.WithoutCancel(ctx)) // the next start does it otherwise
	k.Default = true
	return k, nil
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
	if err = m.Store.DeleteKernel(ctx, name); err == nil {
		err = m.Ledger.ReleaseOwner(ctx, ownerOf(k))
	}
	if err == nil {
		_ = m.keepCopies(context.WithoutCancel(ctx)) // another may be the default now; the next start does it otherwise
	}
	return api.About(err, "remove kernel %q", name)
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
	if len(m.Agent) == 0 {
		return Boot{}, api.Errorf(api.CodeInternal, "boot kernel: this bangerd was built without an agent").WithHint("make build")
	}
	k, err := m.Get(ctx, name)
	if err != nil {
		return Boot{}, err
	}
	dir := m.Dirs.Path(k.Dir)
	b := Boot{
		Vmlinux:   filepath.Join(dir, "vmlinux"),
		Initramfs: filepath.Join(dir, m.initramfs()),
		Modules:   filepath.Join(dir, "modules.ext4"),
	}
	if _, err := os.Stat(b.Initramfs); err == nil {
		return b, nil
	}
	if err := m.writeInitramfs(filepath.Join(dir, "modules.cpio"), b.Initramfs); err != nil {
		return Boot{}, err
	}
	return b, dropInitramfs(dir, b.Initramfs)
}

// dropInitramfs removes the oldest initramfs in dir, but never keep, until no more
// than keptInitramfs are left.
func dropInitramfs(dir, keep string) error {
	files, err := filepath.Glob(filepath.Join(dir, "initramfs-*.cpio"))
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == keep })
	age := func(f string) int64 {
		if info, err := os.Stat(f); err == nil {
			return info.ModTime().UnixNano()
		}
		return 0
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Compare(age(a), age(b)) })
	var errs []error
	for _, f := range files[:max(0, len(files)-(keptInitramfs-1))] {
		if err := os.Remove(f); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
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
	if err := out.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	return failpoint.Pass("kernel", "initramfs")
}
