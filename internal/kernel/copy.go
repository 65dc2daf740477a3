package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"banger/api"
	"banger/internal/resource"
)

// copySchema is the version of kernelCopy that is written, and the newest that is read.
const copySchema = 1

// kernelCopy is kernel.json, in a bundle's directory: the second copy of what the
// database says of it.
type kernelCopy struct {
	Schema int    `json:"schema"`
	Kernel Kernel `json:"kernel"`
}

func (m *Manager) copyPath(dir string) string { return filepath.Join(m.Dirs.Path(dir), "kernel.json") }

// keepCopies brings the second copies up to date.
func (m *Manager) keepCopies(ctx context.Context) error {
	kernels, err := m.Store.Kernels(ctx)
	errs := []error{err}
	for _, k := range kernels {
		errs = append(errs, resource.KeepCopy(m.copyPath(k.Dir), kernelCopy{copySchema, k}))
	}
	return errors.Join(errs...)
}

// Adopt registers again the bundles of which only their directories know, as after
// the loss of the database, and sets directories aside that say nothing. It comes
// before the ledger recovers.
func (m *Manager) Adopt(ctx context.Context, log *slog.Logger) error {
	dirs, err := m.Ledger.UnknownDirs(ctx, dirKind, "kernels")
	if err != nil {
		return err
	}
	var found []Kernel
	var errs []error
	for _, dir := range dirs {
		k, err := m.readCopy(dir)
		if err != nil {
			errs = append(errs, m.setAside(dir, err, log))
			continue
		}
		found = append(found, k)
	}
	slices.SortFunc(found, func(a, b Kernel) int { // the first one becomes the default
		if a.Default != b.Default {
			return map[bool]int{true: -1, false: 1}[a.Default]
		}
		return cmp.Compare(a.Created.UnixNano(), b.Created.UnixNano())
	})
	for _, k := range found {
		errs = append(errs, m.adopt(ctx, k, log))
	}
	if err := m.keepCopies(ctx); err != nil {
		log.Warn("second copies cannot be kept", "err", err)
	}
	return errors.Join(errs...)
}

func (m *Manager) readCopy(dir string) (Kernel, error) {
	var c kernelCopy
	if err := resource.ReadCopy(m.copyPath(dir), copySchema, &c); err != nil {
		return Kernel{}, err
	}
	k := c.Kernel
	if k.Dir != dir || !validName.MatchString(k.Name) {
		return Kernel{}, fmt.Errorf("%w: it tells of %q in %q", resource.ErrDamaged, k.Name, k.Dir)
	}
	_, err := os.Stat(filepath.Join(m.Dirs.Path(dir), "vmlinux"))
	return k, err
}

// adopt registers k, the row of the store before that of the ledger: what the store
// knows has an owner.
func (m *Manager) adopt(ctx context.Context, k Kernel, log *slog.Logger) error {
	if err := m.Store.InsertKernel(ctx, k); err != nil {
		if api.CodeOf(err) != api.CodeAlreadyExists {
			return err
		}
		is, err := m.Get(ctx, k.Name)
		if err != nil {
			return err
		}
		if is.Dir != k.Dir {
			return m.setAside(k.Dir, fmt.Errorf("there is another kernel %q", k.Name), log)
		}
	}
	return m.Ledger.Adopt(ctx, resource.Object{Owner: ownerOf(k), Kind: dirKind, Name: k.Dir})
}

func (m *Manager) setAside(dir string, reason error, log *slog.Logger) error {
	aside, err := m.Dirs.SetAside(dir)
	log.Warn("a directory that nobody knows is set aside", "name", dir, "to", aside, "reason", reason, "err", err)
	return err
}
