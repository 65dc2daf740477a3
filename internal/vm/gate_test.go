package vm_test

import (
	"context"
	"errors"
	"sync/atomic"

	"banger/internal/resource"
	"banger/internal/store"
	"banger/internal/vm"
)

// errDead is what a Service gets from everything once its daemon has died.
var errDead = errors.New("the daemon is dead")

// gate is the death of a daemon: before each statement that has an effect beyond
// its memory the gate is passed, and from some passage on none has an effect.
type gate struct {
	left atomic.Int64 // passages before the death
	dead chan struct{}
}

// newGate returns a gate that lets so many pass; all, where it is 0.
func newGate(passages int) *gate {
	g := &gate{dead: make(chan struct{})}
	g.left.Store(int64(passages))
	if passages == 0 {
		g.left.Store(1 << 62)
	}
	return g
}

func (g *gate) pass() error {
	left := g.left.Add(-1)
	if left == 0 {
		close(g.dead)
	}
	if left <= 0 {
		return errDead
	}
	return nil
}

// gatedStore is the database beyond a gate.
type gatedStore struct {
	db   *store.DB
	gate *gate
}

var (
	_ vm.Store       = gatedStore{}
	_ resource.Store = gatedStore{}
)

func (s gatedStore) InsertVM(ctx context.Context, r vm.Record) error {
	return s.write(func() error { return s.db.InsertVM(ctx, r) })
}

func (s gatedStore) RestoreVM(ctx context.Context, r vm.Record) error {
	return s.write(func() error { return s.db.RestoreVM(ctx, r) })
}

func (s gatedStore) UpdateVM(ctx context.Context, r vm.Record) error {
	return s.write(func() error { return s.db.UpdateVM(ctx, r) })
}

func (s gatedStore) DeleteVM(ctx context.Context, id string) error {
	return s.write(func() error { return s.db.DeleteVM(ctx, id) })
}

func (s gatedStore) AddSSHKey(ctx context.Context, owner uint32, key string) error {
	return s.write(func() error { return s.db.AddSSHKey(ctx, owner, key) })
}

func (s gatedStore) UpdateResource(ctx context.Context, r resource.Ref) error {
	return s.write(func() error { return s.db.UpdateResource(ctx, r) })
}

func (s gatedStore) DeleteResource(ctx context.Context, id string) error {
	return s.write(func() error { return s.db.DeleteResource(ctx, id) })
}

func (s gatedStore) InsertResource(ctx context.Context, r resource.Ref) (seq int64, err error) {
	err = s.write(func() error { seq, err = s.db.InsertResource(ctx, r); return err })
	return seq, err
}

func (s gatedStore) write(fn func() error) error {
	if err := s.gate.pass(); err != nil {
		return err
	}
	return fn()
}

func (s gatedStore) VMs(ctx context.Context) (all []vm.Record, err error) {
	err = s.write(func() error { all, err = s.db.VMs(ctx); return err })
	return all, err
}

func (s gatedStore) SSHKeys(ctx context.Context, owner uint32) (all []string, err error) {
	err = s.write(func() error { all, err = s.db.SSHKeys(ctx, owner); return err })
	return all, err
}

func (s gatedStore) Resources(ctx context.Context, owner string) (all []resource.Ref, err error) {
	err = s.write(func() error { all, err = s.db.Resources(ctx, owner); return err })
	return all, err
}

// kind has a name that is not that of its method.
type kind interface{ resource.Kind }

// gatedKind is a kind of resources beyond a gate.
type gatedKind struct {
	kind
	gate *gate
	fail func(action string, ref resource.Ref) error // what the host refuses; may be nil
}

func (k gatedKind) pass(action string, ref resource.Ref) error {
	if err := k.gate.pass(); err != nil {
		return err
	}
	if k.fail != nil {
		return k.fail(action, ref)
	}
	return nil
}

func (k gatedKind) Acquire(ctx context.Context, ref resource.Ref) error {
	if err := k.pass("acquire", ref); err != nil {
		return err
	}
	return k.kind.Acquire(ctx, ref)
}

func (k gatedKind) Inspect(ctx context.Context, ref resource.Ref) (resource.Presence, error) {
	if err := k.gate.pass(); err != nil {
		return resource.Absent, err
	}
	return k.kind.Inspect(ctx, ref)
}

func (k gatedKind) Release(ctx context.Context, ref resource.Ref) error {
	if err := k.pass("release", ref); err != nil {
		return err
	}
	return k.kind.Release(ctx, ref)
}

func (k gatedKind) List(ctx context.Context) ([]resource.Ref, error) {
	if err := k.gate.pass(); err != nil {
		return nil, err
	}
	return k.kind.List(ctx)
}
