// Package usage says what an installation takes of the disk (Service.DiskUsage) and
// removes what nobody needs (Service.Prune). It measures; what a thing is, and how it
// is removed, is known to those whose it is: packages image, kernel and disk.
package usage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/resource"
	"banger/internal/space"
)

// suspendedDir is where package vm keeps the snapshots of suspended VMs, whose names begin
// with their ids.
const suspendedDir = "suspended"

// rootUID sees and may remove all.
const rootUID = 0

// Config is what a Service is made of.
type Config struct {
	StateDir string
	Room     space.Room
	Images   *image.Manager
	Kernels  *kernel.Manager
	VMs      VMs
	Caches   []Cache
}

// VMs is what is needed of package vm.
type VMs interface {
	List(ctx context.Context, caller uint32) ([]api.VM, error)
}

// Cache keeps what can be made again.
type Cache interface {
	Cache() ([]space.Item, error)
}

// Service measures and prunes one installation. It is safe for concurrent use.
type Service struct{ Config }

// New returns a Service.
func New(c Config) *Service { return &Service{c} }

// users are the VMs that use images, by id, and kernels, by name.
type users struct{ images, kernels map[string]bool }

func (s *Service) users(ctx context.Context) (users, error) {
	all, err := s.VMs.List(ctx, rootUID)
	u := users{map[string]bool{}, map[string]bool{}}
	for _, v := range all {
		u.images[v.ImageID], u.kernels[v.Kernel] = true, true
	}
	return u, err
}

// DiskUsage measures what the caller may see: their VMs, the images that they may use,
// and the kernels; root all.
func (s *Service) DiskUsage(ctx context.Context, caller uint32) (api.DiskUsage, error) {
	out := api.DiskUsage{Images: []api.ImageUsage{}, Layers: []api.LayerUsage{}, VMs: []api.VMUsage{}, Kernels: []api.KernelUsage{},
		Caches: []api.FileUsage{}, Lost: []api.FileUsage{}}
	used, err := s.users(ctx)
	if err != nil {
		return out, err
	}
	m := &measure{Counter: space.NewCounter(), stateDir: s.StateDir, out: &out}
	if caller == rootUID { // first: some of it is in the directories of VMs and layers
		if err := errors.Join(s.setAside(m), s.kept(m)); err != nil {
			return out, err
		}
	}
	err = errors.Join(s.images(ctx, caller, m, used), s.vms(ctx, caller, m), s.kernels(ctx, m, used))
	if err == nil && caller == rootUID {
		err = s.rest(ctx, m)
	}
	if err != nil {
		return out, err
	}
	fs, reserve, err := s.Room.Look()
	out.Size, out.Available, out.Reserve = fs.Size, fs.Available, reserve
	return out, err
}

// measure fills a DiskUsage.
type measure struct {
	*space.Counter
	stateDir string
	out      *api.DiskUsage
}

// take measures what was not measured before, and adds it to the total.
func (m *measure) take(paths ...string) (int64, error) {
	var sum int64
	for _, p := range paths {
		n, err := m.Bytes(p)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	m.out.Total += sum
	return sum, nil
}

func (s *Service) images(ctx context.Context, caller uint32, m *measure, used users) error {
	all, err := s.Images.List(ctx, rootUID)
	if err != nil {
		return err
	}
	mine, err := s.Images.List(ctx, caller)
	if err != nil {
		return err
	}
	having, needed := map[string]int{}, map[string]bool{} // by layer: how many images have it, whether VMs do
	for _, i := range all {
		for _, l := range i.Layers {
			having[l.Digest]++
			needed[l.Digest] = needed[l.Digest] || used.images[i.ID]
		}
	}
	at := map[string]int{}
	for _, i := range mine {
		u := api.ImageUsage{Name: i.Name, Owner: i.Owner, ID: i.ID, Used: used.images[i.ID]}
		for _, l := range i.Layers {
			n, known := at[l.Digest]
			if !known {
				size, err := m.take(s.Images.Dir(l))
				if err != nil {
					return err
				}
				n = len(m.out.Layers)
				at[l.Digest] = n
				m.out.Layers = append(m.out.Layers, api.LayerUsage{Digest: l.Digest, Dir: l.Dir, Size: size, Used: needed[l.Digest]})
			}
			layer := &m.out.Layers[n]
			layer.Images = append(layer.Images, nameFor(caller, i))
			u.Size += layer.Size
			if having[l.Digest] > 1 {
				u.Shared += layer.Size
			}
		}
		m.out.Images = append(m.out.Images, u)
	}
	return nil
}

// nameFor is how caller calls an image.
func nameFor(caller uint32, i image.Image) string {
	if i.Owner == caller {
		return i.Name
	}
	return fmt.Sprintf("%s@%d", i.Name, i.Owner)
}

// vms measures the VMs' directories. Disks are told by their names; see package disk.
func (s *Service) vms(ctx context.Context, caller uint32, m *measure) error {
	all, err := s.VMs.List(ctx, caller)
	if err != nil {
		return err
	}
	for _, v := range all {
		u := api.VMUsage{ID: v.ID, Name: v.Name, Owner: v.Owner, State: v.State}
		dir := filepath.Join(s.StateDir, "vms", v.ID)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			into := &u.Logs
			switch {
			case strings.HasPrefix(e.Name(), "work-"):
				into = &u.Work
			case filepath.Ext(e.Name()) == ".ext4", strings.HasPrefix(e.Name(), "cow-"):
				into = &u.Root
			}
			n, err := m.take(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			*into += n
		}
		own, err := m.take(dir) // the directory itself
		if err != nil {
			return err
		}
		u.Logs += own
		snapshots, err := filepath.Glob(filepath.Join(s.StateDir, suspendedDir, v.ID+"-*"))
		if err != nil {
			return err
		}
		if u.Saved, err = m.take(snapshots...); err != nil {
			return err
		}
		u.Size = u.Root + u.Work + u.Saved + u.Logs
		m.out.VMs = append(m.out.VMs, u)
	}
	return nil
}

func (s *Service) kernels(ctx context.Context, m *measure, used users) error {
	all, err := s.Kernels.List(ctx)
	if err != nil {
		return err
	}
	for _, k := range all {
		u := api.KernelUsage{Name: k.Name, Default: k.Default, Used: used.kernels[k.Name]}
		stale, err := s.Kernels.Stale(k)
		if err != nil {
			return err
		}
		for _, item := range stale {
			n, err := m.take(item.Paths...)
			if err != nil {
				return err
			}
			u.Stale += n
		}
		if u.Size, err = m.take(s.Kernels.Dir(k)); err != nil {
			return err
		}
		u.Size += u.Stale
		m.out.Kernels = append(m.out.Kernels, u)
	}
	return nil
}

func (s *Service) setAside(m *measure) error {
	items, err := s.lost()
	if err == nil {
		m.out.Lost, err = m.files(items)
	}
	return err
}

func (s *Service) kept(m *measure) error {
	items, err := s.caches()
	if err == nil {
		m.out.Caches, err = m.files(items)
	}
	return err
}

// files measures items that are one file or directory each.
func (m *measure) files(items []space.Item) ([]api.FileUsage, error) {
	all := []api.FileUsage{}
	for _, item := range items {
		info, err := os.Lstat(item.Paths[0])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var n int64
		if err == nil {
			n, err = m.take(item.Paths...)
		}
		if err != nil {
			return all, err
		}
		all = append(all, api.FileUsage{Name: item.Name, Size: n, Changed: info.ModTime()})
	}
	return all, nil
}

// rest measures what else is root's alone.
func (s *Service) rest(ctx context.Context, m *measure) error {
	unused, err := s.Images.Unused(ctx)
	if err != nil {
		return err
	}
	for _, item := range unused {
		n, err := m.take(item.Paths...)
		if err != nil {
			return err
		}
		m.out.Layers = append(m.out.Layers, api.LayerUsage{Dir: item.Name, Size: n, Images: []string{}})
	}
	m.out.Other, err = m.take(s.StateDir) // all that was not met before
	return err
}

func (s *Service) caches() ([]space.Item, error) {
	var items []space.Item
	for _, c := range s.Caches {
		more, err := c.Cache()
		if err != nil {
			return nil, err
		}
		items = append(items, more...)
	}
	slices.SortFunc(items, func(a, b space.Item) int { return strings.Compare(a.Name, b.Name) })
	return items, nil
}

// lost finds what was set aside.
func (s *Service) lost() ([]space.Item, error) {
	paths, err := resource.Aside(s.StateDir)
	var items []space.Item
	for _, p := range paths {
		name, err := filepath.Rel(s.StateDir, p)
		if err != nil {
			return nil, err
		}
		items = append(items, space.Item{Kind: "lost", Name: name, Paths: []string{p},
			Remove: func(context.Context) error { return os.RemoveAll(p) }})
	}
	return items, err
}
