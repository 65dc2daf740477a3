package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/systemd"
)

// killPatience is how long the processes of a killed cgroup may take to end.
const killPatience = 5 * time.Second

// Cgroups is the resource.Kind "cgroup": a cgroup (v2) for a VMM, and with it the
// VMM's process, which is born in it and ends with it. No process id is ever
// remembered, so none can be reused by a stranger. Where systemd is the service manager,
// each new one is within a scope of systemd's.
type Cgroups struct {
	root   string // mount point of the hierarchy
	parent string // holds all of this installation's that are in no scope
	scopes *scopes

	mu sync.Mutex // the parent does not go while a child comes
}

// NewCgroups returns the Kind for the installation with the given short id. The
// host must have a cgroup v2 hierarchy mounted.
func NewCgroups(installation string) (*Cgroups, error) {
	root, err := linux.CgroupRoot()
	if err != nil {
		return nil, err
	}
	return &Cgroups{root: root, parent: "banger-" + installation, scopes: newScopes(root, installation)}, nil
}

// Name returns the ledger's name for a new cgroup, from a random word.
func (c *Cgroups) Name(random string) string {
	if systemd.Booted() {
		return c.scopes.name(random)
	}
	return c.parent + "/" + random
}

// Path returns the cgroup's directory.
func (c *Cgroups) Path(name string) string { return filepath.Join(c.root, name) }

// Kind implements resource.Kind.
func (c *Cgroups) Kind() string { return "cgroup" }

// Volatile implements resource.Kind.
func (c *Cgroups) Volatile() bool { return true }

// Acquire makes the cgroup with the limits in the ref's Spec, where it has some.
func (c *Cgroups) Acquire(ctx context.Context, ref resource.Ref) error {
	var limits Limits
	if len(ref.Spec) > 0 {
		if err := json.Unmarshal(ref.Spec, &limits); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	create := c.create
	if c.scopes.unit(ref.Name) != "" {
		create = c.scopes.acquire
	}
	if err := create(ctx, ref); err != nil {
		return err
	}
	return limits.apply(c.Path(ref.Name))
}

// create makes a cgroup that is in no scope.
func (c *Cgroups) create(_ context.Context, ref resource.Ref) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := os.MkdirAll(c.Path(ref.Name), 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	for _, dir := range []string{c.root, c.Path(c.parent)} {
		if err := enable(dir); err != nil {
			return err
		}
	}
	return nil
}

// Inspect implements resource.Kind.
func (c *Cgroups) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	if c.scopes.unit(ref.Name) != "" {
		return c.scopes.inspect(ref.Name)
	}
	_, err := os.Stat(c.Path(ref.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return resource.Absent, nil
	}
	return resource.Ours, err
}

// Release kills what is in the cgroup and removes it, and the installation's
// parent cgroup with its last child.
func (c *Cgroups) Release(ctx context.Context, ref resource.Ref) error {
	if c.scopes.unit(ref.Name) != "" {
		return c.scopes.release(ctx, ref.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if err := linux.RemoveCgroup(ctx, c.Path(ref.Name)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = os.Remove(c.Path(c.parent)) // refused while it has children
	return nil
}

// List implements resource.Kind.
func (c *Cgroups) List(context.Context) ([]resource.Ref, error) {
	names, err := c.scopes.list()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(c.Path(c.parent))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, c.parent+"/"+e.Name())
		}
	}
	var refs []resource.Ref
	for _, name := range names {
		refs = append(refs, resource.Ref{Kind: c.Kind(), Name: name})
	}
	return refs, nil
}
