// Package image keeps the root file systems from which VMs are made: it turns
// archives of strangers into read-only ext4 disks (layers), and knows which user
// owns which image. Nothing of an archive is extracted or mounted on the host:
// import.go drives the conversion, filter.go decides what may go into it.
package image

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/registry"
	"banger/internal/resource"
	"banger/internal/space"
)

const (
	dirKind = "dir"
	rootUID = 0

	defaultMaxSize    = 20 << 30
	defaultMaxEntries = 2_000_000
	defaultMaxMemory  = 36 << 20
)

// Layer is a layer of images, or a disk made of several.
type Layer struct {
	Digest  string // sha256:..., of the layer upon all those below it: its chain id
	DiffID  string // sha256:..., of the uncompressed tar; "" for a disk made of several
	Blob    string // sha256:..., of the archive as a registry has it; "" where it came from none
	Dir     string // its name in the ledger, layers/<rand>
	Size    int64  // bytes on the disk
	Entries int64
}

// Image is a root file system: layers, lowest first.
type Image struct {
	ID       string // sha256:..., of the config
	Name     string
	Owner    uint32
	Created  time.Time
	Layers   []Layer
	Tail     *Layer // of a deep image: the disk of the layers above the first seven
	Entries  int64
	Config   string // the config of an OCI image, JSON; "" in those of earlier versions
	Manifest string // digest of the manifest that it came with, "" where there was none
	Source   string // where it came from, for people

	Used time.Time `json:"-"` // when it was last of use to a VM, or got its name
}

// Store keeps images and layers; every method is one transaction.
type Store interface {
	// InsertImage adds the image, and those of its layers that are not there. Where
	// owner has an image of that name, that one loses its name if it is to be replaced
	// (and goes, unless a VM uses it); else the error is an already_exists.
	InsertImage(ctx context.Context, img Image, replace bool) error
	Images(context.Context) ([]Image, error)
	// DeleteImage removes an image and returns the layers that nobody uses now, but for
	// those to be kept, whose rows are gone too. The errors are conflict, naming the VMs
	// that use it, and not_found.
	DeleteImage(ctx context.Context, owner uint32, name string, keep []string) (orphans []Layer, err error)
	// DeleteOrphans removes the layers of no image, but for those to be kept.
	DeleteOrphans(ctx context.Context, keep []string) (orphans []Layer, err error)
	Layers(context.Context) ([]Layer, error)
	Layer(ctx context.Context, digest string) (Layer, bool, error)
	InsertLayer(context.Context, Layer) error
	ResizeLayer(ctx context.Context, digest string, size int64) error
}

// Config is what a Manager needs.
type Config struct {
	Ledger     *resource.Ledger
	Dirs       *resource.Dir // the kind "dir", rooted in the state directory
	Store      Store
	Room       space.Room
	MaxSize    int64 // bytes of content in an archive; 20 GiB where it is 0
	MaxEntries int64 // entries of an archive; 2,000,000 where it is 0
	MaxMemory  int64 // bytes of memory for the names and inodes of an image that is made; 36 MiB where it is 0
	Registries *registry.Client
}

// Manager imports, lists and removes images. It is safe for concurrent use.
type Manager struct {
	Config
	mu sync.Mutex // held where layers gain or lose their last image

	busyMu sync.Mutex
	busy   map[key]bool             // what is being imported
	claims map[string]chan struct{} // what is being made, closed at the end
	pins   map[string]int           // layers on the way into an image

	partials map[partial]string // directories that wait for another pull
	found    sync.Once          // those of an earlier daemon are among them
}

type key struct {
	owner uint32
	name  string
}

// New returns a Manager.
func New(c Config) *Manager {
	if c.MaxSize == 0 {
		c.MaxSize = defaultMaxSize
	}
	if c.MaxMemory == 0 {
		c.MaxMemory = defaultMaxMemory
	}
	if c.Registries == nil {
		c.Registries = &registry.Client{}
	}
	if c.MaxEntries == 0 {
		c.MaxEntries = defaultMaxEntries
	}
	return &Manager{Config: c, busy: map[key]bool{}, claims: map[string]chan struct{}{}, pins: map[string]int{}, partials: map[partial]string{}}
}

// validName is the name of an image: words with slashes, a registry with a port
// before them where there is one, and a tag or a digest.
var validName = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]{0,250}:[0-9]{1,5}/)?[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})?$`)

// List returns the images that caller may use: root all, others theirs and root's.
func (m *Manager) List(ctx context.Context, caller uint32) ([]Image, error) {
	all, err := m.Store.Images(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return slices.DeleteFunc(all, func(i Image) bool {
		return caller != rootUID && i.Owner != caller && i.Owner != rootUID
	}), nil
}

// Get finds an image that caller may use: the caller's own of that name, else root's,
// else, for root alone, that of the one user who has such an image. "name@uid" is that
// user's and no other.
func (m *Manager) Get(ctx context.Context, caller uint32, name string) (Image, error) {
	all, err := m.List(ctx, caller)
	if err != nil {
		return Image{}, err
	}
	plain, of, explicit := strings.Cut(name, "@")
	if strings.HasPrefix(of, "sha256:") {
		plain, explicit = name, false
	}
	if short, err := registry.Familiar(plain); err == nil && !slices.ContainsFunc(all, func(i Image) bool { return i.Name == plain }) {
		plain = short
	}
	named := slices.DeleteFunc(all, func(i Image) bool { return i.Name != plain || explicit && fmt.Sprint(i.Owner) != of })
	for _, owner := range []uint32{caller, rootUID} {
		if at := slices.IndexFunc(named, func(i Image) bool { return i.Owner == owner }); at >= 0 {
			return named[at], nil
		}
	}
	switch len(named) {
	case 0:
		return Image{}, api.Errorf(api.CodeNotFound, "image %q: no such image", name).Missing("image", name).
			WithHint("banger image list lists them, banger image import makes one of a tar archive, banger image bootstrap makes one of the host's distribution")
	case 1:
		return named[0], nil
	}
	return Image{}, api.Errorf(api.CodeInvalid, "image %q: %d users have one of that name", name, len(named)).
		WithHint("say whose: %s", fullName(named[0]))
}

// ForVM is Get for an image of which a VM is to be made: it is unsupported where it is
// for another machine.
func (m *Manager) ForVM(ctx context.Context, caller uint32, name string) (Image, error) {
	img, err := m.Get(ctx, caller, name)
	if err == nil {
		err = img.Usable()
	}
	return img, err
}

func fullName(i Image) string { return fmt.Sprintf("%s@%d", i.Name, i.Owner) }

// Remove removes the caller's image, and the layers that no other one uses. Root may
// remove a user's, by its full name "name@uid".
func (m *Manager) Remove(ctx context.Context, caller uint32, name string) error {
	img, err := m.Get(ctx, caller, name)
	if err != nil {
		return err
	}
	switch {
	case img.Owner == caller:
	case caller != rootUID:
		return api.Errorf(api.CodePermissionDenied, "remove image %q: it is not yours", name).WithHint("ask its owner, uid %d", img.Owner)
	case name != fullName(img):
		return api.Errorf(api.CodePermissionDenied, "remove image %q: it is of user %d", name, img.Owner).WithHint("banger image rm %s", fullName(img))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	orphans, err := m.Store.DeleteImage(ctx, img.Owner, img.Name, m.pinned())
	if err != nil {
		return api.About(err, "remove image %q", name)
	}
	if err := m.forget(ctx, orphans); err != nil {
		return fmt.Errorf("remove image %q: %w", name, err)
	}
	_ = m.keepCopies(context.WithoutCancel(ctx)) // of layers that stay; the next start does it otherwise
	return nil
}

// byID finds the image id, whoever has it.
func (m *Manager) byID(ctx context.Context, id string) (Image, error) {
	all, err := m.Store.Images(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("list images: %w", err)
	}
	i := slices.IndexFunc(all, func(i Image) bool { return i.ID == id })
	if i < 0 {
		return Image{}, api.Errorf(api.CodeNotFound, "image %s: no such image", id)
	}
	return all[i], nil
}

// Disks returns the absolute paths of the layers of image id, lowest first.
func (m *Manager) Disks(ctx context.Context, id string) ([]string, error) {
	img, err := m.byID(ctx, id)
	var paths []string
	for _, l := range img.disks() {
		paths = append(paths, m.path(l.Dir, layerFile))
	}
	return paths, err
}

// disks are the layers of which a VM has disks.
func (i Image) disks() []Layer {
	if i.Tail != nil {
		return append(slices.Clone(i.Layers[:maxDisks-1]), *i.Tail)
	}
	return i.Layers
}

// Base is the content of an image as one file system that can be written to. It is
// kept in the directory of the highest layer, which is of all those below as well, and
// goes with it.
type Base struct {
	File    string // as Dir; empty while there is none
	Dir     string // relative to the state directory: where one is to be made, as base-<random>.ext4
	Content int64  // bytes that it has to hold
	Entries int64  // files and directories, likewise
}

// Base returns the base of image id.
func (m *Manager) Base(ctx context.Context, id string) (Base, error) {
	img, err := m.byID(ctx, id)
	if err != nil {
		return Base{}, err
	}
	base := Base{Dir: img.Layers[len(img.Layers)-1].Dir, Entries: img.Entries}
	for _, l := range img.disks() {
		n, err := linux.Allocated(m.path(l.Dir, layerFile))
		if err != nil {
			return Base{}, err
		}
		base.Content += n
	}
	found, err := filepath.Glob(m.path(base.Dir, "base-*.ext4"))
	if len(found) > 0 {
		base.File = path.Join(base.Dir, filepath.Base(found[0]))
	}
	return base, err
}

// Bases returns all of them, as Base.File.
func (m *Manager) Bases() ([]string, error) {
	files, err := filepath.Glob(m.path("layers/*", "base-*.ext4"))
	for i, file := range files {
		files[i] = path.Join("layers", filepath.Base(filepath.Dir(file)), filepath.Base(file))
	}
	return files, err
}

// Alive returns the ledger's owners, "layer/<rand>", that are still wanted.
func (m *Manager) Alive(ctx context.Context) (map[string]bool, error) {
	layers, err := m.Store.Layers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	alive := map[string]bool{}
	for _, l := range layers {
		alive[layerOwner(l.Dir)] = true
	}
	m.found.Do(func() { err = m.findPartials(ctx, alive) })
	for _, dir := range m.waiting() {
		alive[layerOwner(dir)] = true
	}
	return alive, err
}

func layerOwner(dir string) string { return "layer/" + filepath.Base(dir) }
