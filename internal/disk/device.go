package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
)

// The words for the kinds of devices of a snapshot, in the order of acquisition.
const (
	KindLoopBase = "loop-base"
	KindLoopCow  = "loop-cow"
	KindOrigin   = "dm-origin"
	KindSnapshot = "dm-snapshot"
)

// Mapper is the kernel's device-mapper: linux.DeviceMapper, whose methods say what is
// meant. It has what it makes devices of open for as long as they are there.
type Mapper interface {
	Supports(types ...string) error
	Make(name, uuid string, readOnly bool, table []linux.DMTarget) error
	Reload(name string, readOnly bool, table []linux.DMTarget) error
	Remove(name string) error
	Find(name string) (linux.DMDevice, error)
	Status(name string) (string, error)
	Names(prefix string) ([]string, error)
}

// SnapshotKinds returns the kinds of resources that the Snapshots of an installation
// need, in the order of acquisition.
func SnapshotKinds(installation, stateDir string, mapper Mapper) []resource.Kind {
	return []resource.Kind{
		loops{KindLoopBase, tagOf(installation, KindLoopBase), stateDir},
		loops{KindLoopCow, tagOf(installation, KindLoopCow), stateDir},
		devices{KindOrigin, tagOf(installation, KindOrigin), mapper},
		devices{KindSnapshot, tagOf(installation, KindSnapshot), mapper},
	}
}

// tagOf is what the names of an installation's devices of one kind begin with.
func tagOf(installation, kind string) string { return "banger-" + installation + "-" + kind + "-" }

// loops is a kind of loop devices. They are found by the name that they bear.
type loops struct{ kind, tag, stateDir string }

type loopSpec struct {
	File     string // relative to the state directory
	ReadOnly bool
}

func (l loops) Kind() string   { return l.kind }
func (l loops) Volatile() bool { return true }

func (l loops) Acquire(_ context.Context, ref resource.Ref) error {
	var spec loopSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return fmt.Errorf("create loop device %s: %w", ref.Name, err)
	}
	if err := linux.DetachLoop(ref.Name); err != nil { // what an earlier attempt left
		return fmt.Errorf("create loop device %s: %w", ref.Name, err)
	}
	// What is read of a base, all its snapshots share in the page cache. What is written
	// is in the cache of the device above it.
	loop := linux.Loop{Name: ref.Name, File: filepath.Join(l.stateDir, filepath.FromSlash(spec.File)), ReadOnly: spec.ReadOnly, DirectIO: !spec.ReadOnly}
	if err := loop.Attach(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return api.Errorf(api.CodeUnavailable, "create loop device %s: %w", ref.Name, err)
		}
		return fmt.Errorf("create loop device %s: %w", ref.Name, err)
	}
	return nil
}

func (l loops) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	_, err := linux.FindLoop(ref.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return resource.Absent, nil
	case err != nil:
		return resource.Absent, err
	}
	return resource.Ours, nil
}

func (l loops) Release(_ context.Context, ref resource.Ref) error { return linux.DetachLoop(ref.Name) }

func (l loops) List(context.Context) ([]resource.Ref, error) {
	names, err := linux.LoopNames(l.tag)
	return refs(l.kind, names), err
}

// devices is a kind of devices that device-mapper makes.
type devices struct {
	kind, tag string
	mapper    Mapper
}

type deviceSpec struct {
	ReadOnly bool
	Table    []linux.DMTarget
}

// uuidOf is what a device bears beside its name, which others may take.
func uuidOf(name string) string { return "BANGER-" + name }

func (d devices) Kind() string   { return d.kind }
func (d devices) Volatile() bool { return true }

func (d devices) Acquire(ctx context.Context, ref resource.Ref) error {
	var spec deviceSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return fmt.Errorf("create device %s: %w", ref.Name, err)
	}
	if err := d.Release(ctx, ref); err != nil { // what an earlier attempt left
		return err
	}
	return d.mapper.Make(ref.Name, uuidOf(ref.Name), spec.ReadOnly, spec.Table)
}

func (d devices) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	device, err := d.mapper.Find(ref.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return resource.Absent, nil
	case err != nil:
		return resource.Absent, err
	case device.UUID != uuidOf(ref.Name):
		return resource.Foreign, nil
	}
	return resource.Ours, nil
}

func (d devices) Release(ctx context.Context, ref resource.Ref) error {
	presence, err := d.Inspect(ctx, ref)
	if err != nil || presence != resource.Ours {
		return err
	}
	return d.mapper.Remove(ref.Name)
}

func (d devices) List(context.Context) ([]resource.Ref, error) {
	names, err := d.mapper.Names(d.tag)
	return refs(d.kind, names), err
}

func refs(kind string, names []string) []resource.Ref {
	refs := make([]resource.Ref, 0, len(names))
	for _, name := range names {
		refs = append(refs, resource.Ref{Kind: kind, Name: name})
	}
	return refs
}
