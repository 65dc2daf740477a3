package resource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// Dir is the Kind of directories below a root. A ref's name is the path relative
// to the root, so that rows stay true when the root is moved or copied.
type Dir struct {
	kind     string
	root     string
	parents  []string
	volatile bool
}

// NewDir returns the Kind called kind, of directories that lie directly in one of
// the parents, which are paths relative to root and are made as needed. Volatile
// says that root does not survive a boot (it lies on a tmpfs).
func NewDir(kind, root string, volatile bool, parents ...string) *Dir {
	return &Dir{kind: kind, root: root, parents: parents, volatile: volatile}
}

// Kind implements Kind.
func (d *Dir) Kind() string { return d.kind }

// Volatile implements Kind.
func (d *Dir) Volatile() bool { return d.volatile }

// Path returns the absolute path of the directory called name.
func (d *Dir) Path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

// Acquire makes the directory, with mode 0700 and empty: what an earlier attempt
// left in it is removed.
func (d *Dir) Acquire(ctx context.Context, ref Ref) error {
	if err := d.Release(ctx, ref); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.Path(ref.Name)), 0o711); err != nil {
		return fmt.Errorf("create directory %s: %w", d.Path(ref.Name), err)
	}
	if err := os.Mkdir(d.Path(ref.Name), 0o700); err != nil {
		return fmt.Errorf("create directory %s: %w", d.Path(ref.Name), err)
	}
	return nil
}

// Inspect implements Kind.
func (d *Dir) Inspect(_ context.Context, ref Ref) (Presence, error) {
	info, err := os.Lstat(d.Path(ref.Name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Absent, nil
	case err != nil:
		return Absent, err
	case !info.IsDir():
		return Foreign, nil
	}
	return Ours, nil
}

// Release removes the directory with all that is in it. What is no directory was not
// made by Acquire, and stays.
func (d *Dir) Release(ctx context.Context, ref Ref) error {
	if presence, err := d.Inspect(ctx, ref); err != nil || presence != Ours {
		return err
	}
	if err := os.RemoveAll(d.Path(ref.Name)); err != nil {
		return fmt.Errorf("remove directory %s: %w", d.Path(ref.Name), err)
	}
	return nil
}

// List implements Kind: everything directly in one of the parents.
func (d *Dir) List(context.Context) ([]Ref, error) {
	var refs []Ref
	for _, parent := range d.parents {
		entries, err := os.ReadDir(d.Path(parent))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", d.Path(parent), err)
		}
		for _, e := range entries {
			refs = append(refs, Ref{Kind: d.kind, Name: path.Join(parent, e.Name())})
		}
	}
	return refs, nil
}
