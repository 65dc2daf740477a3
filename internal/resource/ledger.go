package resource

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"banger/internal/failpoint"
)

// releaseTries is how often a release that is refused (EBUSY, mostly) is tried
// before the row is left to Recover.
const releaseTries = 5

// Ledger makes and unmakes objects through their kinds and keeps the rows.
// It is safe for concurrent use.
type Ledger struct {
	store  Store
	kinds  map[string]Kind
	order  []Kind // as given: what is made of others comes after them
	bootID string
	run    string
	log    *slog.Logger

	mu    sync.Mutex
	stuck map[string]backOff // by id, what Retry has tried
}

// New returns the ledger that keeps its rows in store. BootID is the host's
// current boot; a new run id is drawn. Objects of a kind may use those of the kinds
// before it: recovery goes through them backwards.
func New(store Store, bootID string, log *slog.Logger, kinds ...Kind) *Ledger {
	l := &Ledger{
		store: store, kinds: map[string]Kind{}, order: kinds, bootID: bootID, run: RandomName(8), log: log, stuck: map[string]backOff{},
	}
	for _, k := range kinds {
		l.kinds[k.Kind()] = k
	}
	return l
}

// RandomName returns 2n hexadecimal digits from the system's random source. It is
// how names that are never used twice are made.
func RandomName(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Acquire makes the object called name on behalf of owner. Spec, which may be
// nil, is kept as JSON for the kind. On an error nothing is left, or, if that
// does not succeed either, a row that Recover will see to.
func (l *Ledger) Acquire(ctx context.Context, owner, kind, name string, spec any) (Ref, error) {
	k, ok := l.kinds[kind]
	if !ok {
		return Ref{}, fmt.Errorf("acquire %s %s: no such kind of resource", kind, name)
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return Ref{}, fmt.Errorf("acquire %s %s: %w", kind, name, err)
	}
	ref := Ref{
		ID: RandomName(8), Owner: owner, Kind: kind, Name: name, Spec: raw,
		State: Acquiring, BootID: l.bootID, Run: l.run,
	}
	if ref.Seq, err = l.store.InsertResource(ctx, ref); err != nil {
		return Ref{}, fmt.Errorf("ledger: record %s %s: %w", kind, name, err)
	}
	if err = failpoint.Pass(kind, "acquire.recorded"); err == nil {
		err = k.Acquire(ctx, ref)
	}
	if err == nil {
		err = failpoint.Pass(kind, "acquire.acted")
	}
	if err != nil {
		return Ref{}, l.undo(ctx, ref, err)
	}
	ref.State = Held
	if err := l.store.UpdateResource(ctx, ref); err != nil {
		return Ref{}, l.undo(ctx, ref, fmt.Errorf("ledger: record %s %s: %w", kind, name, err))
	}
	failpoint.Reach(kind, "acquire.held")
	return ref, nil
}

func (l *Ledger) undo(ctx context.Context, ref Ref, cause error) error {
	if err := l.Release(context.WithoutCancel(ctx), ref); err != nil {
		l.log.Error("resource is left to recovery", "kind", ref.Kind, "name", ref.Name, "err", err)
	}
	return cause
}

// Release unmakes an object and deletes its row. An object that will not go keeps
// its row, with the reason; Recover tries again. The end of ctx ends the waiting for
// one that is busy, not the work: what is half unmade serves nobody.
func (l *Ledger) Release(ctx context.Context, ref Ref) error {
	k, ok := l.kinds[ref.Kind]
	if !ok {
		return fmt.Errorf("release %s %s: no such kind of resource", ref.Kind, ref.Name)
	}
	ref.State, ref.Run = Releasing, l.run
	durably := context.WithoutCancel(ctx) // a row has to say what is done to its object
	// A full disk must not keep what is there from being given back: the object
	// goes all the same, its row (still there, in an older state) after it.
	markErr := l.store.UpdateResource(durably, ref)
	failpoint.Reach(ref.Kind, "release.marked")
	err := l.unmake(ctx, k, ref)
	if err != nil {
		ref.Error = err.Error()
		return errors.Join(err, markErr, l.store.UpdateResource(durably, ref))
	}
	if err := l.store.DeleteResource(durably, ref.ID); err != nil {
		return fmt.Errorf("ledger: forget %s %s: %w", ref.Kind, ref.Name, err)
	}
	failpoint.Reach(ref.Kind, "release.forgotten")
	return nil
}

// unmake releases until Inspect says that the object is absent.
func (l *Ledger) unmake(ctx context.Context, k Kind, ref Ref) error {
	delay := 10 * time.Millisecond
	for try := 1; ; try++ {
		err := k.Release(ctx, ref)
		if err == nil {
			err = failpoint.Pass(ref.Kind, "release.acted")
		}
		if err == nil {
			presence, ierr := k.Inspect(ctx, ref)
			switch {
			case ierr != nil:
				err = ierr
			case presence == Ours:
				err = fmt.Errorf("release %s %s: it is still there", ref.Kind, ref.Name)
			default: // absent; or somebody else's by now, which we never touch
				return nil
			}
		}
		if try == releaseTries {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(delay):
		}
		delay *= 4
	}
}

// ReleaseOwner releases all that is held on behalf of owner, last acquired first, those of
// kinds that go Apart beside the others. It goes on after an error, and returns all of them.
// Only if there was none the next owners follow, each as the first.
func (l *Ledger) ReleaseOwner(ctx context.Context, owner string, next ...string) error {
	return l.release(ctx, append([]string{owner}, next...), func(Ref) bool { return true })
}

// release releases those of some owners, or of all where the one is empty, that are wanted.
func (l *Ledger) release(ctx context.Context, owners []string, wanted func(Ref) bool) error {
	var apart sync.WaitGroup
	var mu sync.Mutex
	var late, err error // of those apart, which mu guards, and of the others
	for _, owner := range owners {
		refs, lerr := l.store.Resources(ctx, owner)
		if lerr != nil {
			err = fmt.Errorf("ledger: list resources of %s: %w", owner, lerr)
		}
		for _, ref := range slices.Backward(refs) {
			if !wanted(ref) {
				continue
			}
			if k, ok := l.kinds[ref.Kind].(Apart); !ok || !k.Apart() {
				err = errors.Join(err, l.Release(ctx, ref))
				continue
			}
			apart.Go(func() {
				rerr := l.Release(ctx, ref)
				mu.Lock()
				defer mu.Unlock()
				late = errors.Join(late, rerr)
			})
		}
		if err != nil {
			break
		}
	}
	apart.Wait()
	return errors.Join(err, late)
}

// Finish releases what is neither held nor released on behalf of owner, who has
// nothing else under way: what an earlier release could not.
func (l *Ledger) Finish(ctx context.Context, owner string) error {
	return l.release(ctx, []string{owner}, func(r Ref) bool { return r.State != Held })
}

// Rows returns all rows, in order of acquisition.
func (l *Ledger) Rows(ctx context.Context) ([]Ref, error) {
	refs, err := l.store.Resources(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("ledger: list resources: %w", err)
	}
	return refs, nil
}

// Inspect looks for the object of a row.
func (l *Ledger) Inspect(ctx context.Context, ref Ref) (Presence, error) {
	k, ok := l.kinds[ref.Kind]
	if !ok {
		return Absent, fmt.Errorf("inspect %s %s: no such kind of resource", ref.Kind, ref.Name)
	}
	return k.Inspect(ctx, ref)
}

// Held returns what is held on behalf of owner, in order of acquisition.
func (l *Ledger) Held(ctx context.Context, owner string) ([]Ref, error) {
	refs, err := l.store.Resources(ctx, owner)
	if err != nil {
		return nil, fmt.Errorf("ledger: list resources of %s: %w", owner, err)
	}
	return slices.DeleteFunc(refs, func(r Ref) bool { return r.State != Held }), nil
}
