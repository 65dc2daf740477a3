// Package image keeps the root file systems from which VMs are made: it turns
// archives of strangers into read-only ext4 disks (layers), and knows which user
// owns which image. Nothing of an archive is extracted or mounted on the host:
// import.go drives the conversion, filter.go decides what may go into it.
package image

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/resource"
	"banger/internal/space"
)

const (
	dirKind   = "dir"
	layerFile = "layer.ext4"
	rootUID   = 0

	defaultMaxSize    = 20 << 30
	defaultMaxEntries = 2_000_000
)

// Layer is one read-only disk.
type Layer struct {
	Digest string // sha256:..., of the uncompressed tar
	Dir    string // its name in the ledger, layers/<rand>
	Size   int64  // bytes on the disk
}

// Image is a root file system: layers, lowest first.
type Image struct {
	ID      string // sha256:..., over the digests of the layers
	Name    string
	Owner   uint32
	Created time.Time
	Layers  []Layer
	Entries int64
}

// Store keeps images and layers; every method is one transaction.
type Store interface {
	// InsertImage adds the image, and those of its layers that are not there. The
	// error is an already_exists where owner has an image of that name.
	InsertImage(context.Context, Image) error
	Images(context.Context) ([]Image, error)
	// DeleteImage removes an image and returns the layers that nobody uses now,
	// whose rows are gone too. The errors are conflict, naming the VMs that use
	// it, and not_found.
	DeleteImage(ctx context.Context, owner uint32, name string) (orphans []Layer, err error)
	Layers(context.Context) ([]Layer, error)
}

// Config is what a Manager needs.
type Config struct {
	Ledger     *resource.Ledger
	Dirs       *resource.Dir // the kind "dir", rooted in the state directory
	Store      Store
	Room       space.Room
	MaxSize    int64 // bytes of content in an archive; 20 GiB where it is 0
	MaxEntries int64 // entries of an archive; 2,000,000 where it is 0
}

// Manager imports, lists and removes images. It is safe for concurrent use.
type Manager struct {
	Config
	mu sync.Mutex // held where layers gain or lose their last image

	busyMu sync.Mutex
	busy   map[key]bool // what is being imported
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
	if c.MaxEntries == 0 {
		c.MaxEntries = defaultMaxEntries
	}
	return &Manager{Config: c, busy: map[key]bool{}}
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$`)

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
	orphans, err := m.Store.DeleteImage(ctx, img.Owner, img.Name)
	if err != nil {
		return err
	}
	for _, l := range orphans {
		// From here on the layer is nobody's; what stays is Recover's to remove.
		if err := m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(l.Dir)); err != nil {
			return fmt.Errorf("remove image %q: %w", name, err)
		}
	}
	return nil
}

// Disks returns the absolute paths of the layers of image id, lowest first.
func (m *Manager) Disks(ctx context.Context, id string) ([]string, error) {
	all, err := m.Store.Images(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	i := slices.IndexFunc(all, func(i Image) bool { return i.ID == id })
	if i < 0 {
		return nil, api.Errorf(api.CodeNotFound, "image %s: no such image", id)
	}
	var paths []string
	for _, l := range all[i].Layers {
		paths = append(paths, filepath.Join(m.Dirs.Path(l.Dir), layerFile))
	}
	return paths, nil
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
	return alive, nil
}

func layerOwner(dir string) string { return "layer/" + filepath.Base(dir) }
