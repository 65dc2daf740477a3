// Package operation runs what takes longer than the answer to a request should:
// each operation is a goroutine of its own with a context that the request's end
// does not cancel, whose progress can be followed and which can be cancelled.
// Operations live in memory alone: a daemon that restarts knows none. What is
// done in them (create a VM, pull a kernel) is the business of others.
package operation

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"banger/api"
)

// Finished operations are kept so long, and so many of them.
const (
	keepFor  = 10 * time.Minute
	keepMost = 1000
)

// Registry knows the operations under way and those that ended lately. Its
// methods may be called from any goroutine.
type Registry struct {
	mu     sync.Mutex
	closed bool
	ops    map[string]*entry
	wg     sync.WaitGroup
	now    func() time.Time
}

type entry struct {
	op        api.Operation
	cancel    context.CancelFunc
	cancelled bool          // somebody asked for it
	done      chan struct{} // closed when op is final
	followers map[chan api.Progress]struct{}
}

// NewRegistry returns an empty Registry.
func NewRegistry() *Registry {
	return &Registry{ops: map[string]*entry{}, now: time.Now}
}

func unavailable(kind, target string) *api.Error {
	return api.Errorf(api.CodeUnavailable, "%s %s: the daemon is shutting down", kind, target).WithHint("try again in a moment")
}

func notFound(id string) *api.Error {
	return api.Errorf(api.CodeNotFound, "operation %q: no such operation", id)
}

// Start runs fn as an operation of owner's and returns it as it is at the
// beginning. The context that fn gets ends when the operation is cancelled. An
// fn that returns an error after that is cancelled, with another error failed; a
// panic in it is an internal error. After Close the operation fails at once.
func (r *Registry) Start(owner uint32, kind, target string, fn func(ctx context.Context, report api.Reporter) error) api.Operation {
	return r.Make(owner, kind, target, func(ctx context.Context, report api.Reporter) (string, error) {
		return "", fn(ctx, report)
	})
}

// Make is Start for an operation whose result has a name that only its end tells.
func (r *Registry) Make(owner uint32, kind, target string, fn func(ctx context.Context, report api.Reporter) (string, error)) api.Operation {
	ctx, cancel := context.WithCancel(context.Background())
	e := &entry{cancel: cancel, done: make(chan struct{}), followers: map[chan api.Progress]struct{}{}}
	e.op = api.Operation{ID: newID(), Kind: kind, Target: target, Owner: owner, Status: api.OperationRunning}

	r.mu.Lock()
	defer r.mu.Unlock()
	e.op.Created = r.now()
	r.ops[e.op.ID] = e
	if r.closed {
		r.finish(e, unavailable(kind, target))
		return e.op
	}
	r.prune()
	op := e.op
	r.wg.Go(func() {
		result, err := call(ctx, op, fn, func(p api.Progress) { r.report(e, p) })
		r.mu.Lock()
		defer r.mu.Unlock()
		e.op.Result = result
		r.finish(e, err)
	})
	return op
}

func newID() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // documented never to fail
	return hex.EncodeToString(b)
}

func call(ctx context.Context, op api.Operation, fn func(context.Context, api.Reporter) (string, error), report api.Reporter) (result string, err error) {
	defer func() {
		if v := recover(); v != nil {
			slog.Error("panic in operation", "id", op.ID, "kind", op.Kind, "target", op.Target, "panic", v, "stack", string(debug.Stack()))
			err = api.Errorf(api.CodeInternal, "%s %s: panic: %v", op.Kind, op.Target, v).WithHint("the daemon's log has the details")
		}
	}()
	return fn(ctx, report)
}

// finish makes e final; r.mu is held.
func (r *Registry) finish(e *entry, err error) {
	now := r.now()
	e.op.Finished = &now
	switch {
	case err == nil:
		e.op.Status = api.OperationSucceeded
	case e.cancelled:
		e.op.Status = api.OperationCancelled
		if _, coded := errors.AsType[*api.Error](err); !coded && errors.Is(err, context.Canceled) {
			err = api.Errorf(api.CodeConflict, "%s %s: cancelled", e.op.Kind, e.op.Target)
		}
	default:
		e.op.Status = api.OperationFailed
	}
	if err != nil {
		e.op.Error = api.AsError(err)
	}
	e.cancel()
	for c := range e.followers {
		close(c)
	}
	e.followers = nil
	close(e.done)
}

func (r *Registry) report(e *entry, p api.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.op.Finished != nil {
		return
	}
	e.op.Progress = p
	for c := range e.followers {
		offer(c, p)
	}
}

// offer replaces what is in c, a channel with room for one, by p. Only one
// goroutine at a time may call it, which r.mu ensures.
func offer(c chan api.Progress, p api.Progress) {
	select {
	case <-c:
	default:
	}
	c <- p
}

// prune forgets finished operations that are too old or too many; r.mu is held.
func (r *Registry) prune() {
	var finished []*entry
	for id, e := range r.ops {
		switch {
		case e.op.Finished == nil:
		case r.now().Sub(*e.op.Finished) >= keepFor:
			delete(r.ops, id)
		default:
			finished = append(finished, e)
		}
	}
	if len(finished) <= keepMost {
		return
	}
	slices.SortFunc(finished, func(a, b *entry) int { return a.op.Finished.Compare(*b.op.Finished) })
	for _, e := range finished[:len(finished)-keepMost] {
		delete(r.ops, e.op.ID)
	}
}

// lookup finds an operation that is still kept; r.mu is held.
func (r *Registry) lookup(id string) (*entry, bool) {
	r.prune()
	e, ok := r.ops[id]
	return e, ok
}

// Get returns an operation as it is now.
func (r *Registry) Get(id string) (api.Operation, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.lookup(id)
	if !ok {
		return api.Operation{}, false
	}
	return e.op, true
}

// List returns all operations that are kept, oldest first.
func (r *Registry) List() []api.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune()
	ops := make([]api.Operation, 0, len(r.ops))
	for _, e := range r.ops {
		ops = append(ops, e.op)
	}
	slices.SortFunc(ops, func(a, b api.Operation) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return ops
}

// Cancel asks an operation to end; it does not wait for it. It reports whether
// the operation is known; one that has ended stays as it is.
func (r *Registry) Cancel(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.lookup(id)
	if !ok {
		return false
	}
	if e.op.Finished == nil {
		e.cancelled = true
		e.cancel()
	}
	return true
}

// Follow returns a channel of the operation's progress, beginning with the latest.
// A slow reader misses all but the latest. The channel is closed when the
// operation or ctx ends; Get says how it ended. An unknown id is not_found.
func (r *Registry) Follow(ctx context.Context, id string) (<-chan api.Progress, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.lookup(id)
	if !ok {
		return nil, notFound(id)
	}
	c := make(chan api.Progress, 1)
	c <- e.op.Progress
	if e.op.Finished != nil {
		close(c)
		return c, nil
	}
	e.followers[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, ok := e.followers[c]; ok {
			delete(e.followers, c)
			close(c)
		}
	})
	return c, nil
}

// Wait returns the operation once it has ended; how it ended is in its Status
// and Error. The error is not_found for an unknown id, or that of ctx.
func (r *Registry) Wait(ctx context.Context, id string) (api.Operation, error) {
	r.mu.Lock()
	e, ok := r.lookup(id)
	r.mu.Unlock()
	if !ok {
		return api.Operation{}, notFound(id)
	}
	select {
	case <-e.done:
		return e.op, nil // final: nobody writes to it any more
	case <-ctx.Done():
		return api.Operation{}, ctx.Err()
	}
}

// Close cancels all operations and waits until they have ended, or until ctx
// does. Operations started from now on fail.
func (r *Registry) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	for _, e := range r.ops {
		if e.op.Finished == nil {
			e.cancelled = true
			e.cancel()
		}
	}
	r.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		r.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("close operations: some have not ended"), ctx.Err())
	}
}
