package resource

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The first and the longest pause between two attempts of Retry to release the same
// object.
const (
	minPause = 5 * time.Second
	maxPause = 10 * time.Minute
)

// backOff says when to try again what did not succeed.
type backOff struct {
	pause time.Duration
	next  time.Time // by the monotonic clock, which does not jump
}

// Recover makes the ledger and the host agree, before anything else is done to
// either:
//
//   - rows that an earlier run left acquiring or releasing are released;
//   - rows of owners that are gone, by the word of alive, are released;
//   - rows of volatile kinds from an earlier boot are released;
//   - objects that bear our tag and have no row are released.
//
// What has the name of a row's object and is not the object is never touched; Check
// reports it. Recover goes on after an error and returns all of them; a second call
// does nothing more where the first one succeeded.
func (l *Ledger) Recover(ctx context.Context, alive func(owner string) bool) error {
	return l.agree(ctx, alive, func(Kind) bool { return true })
}

// Tend is Recover for a ledger in use: what owners have acquired in this run, and what
// they are about to make or unmake, is theirs. Files without a row are left for people
// to look at; the next start sees to them.
func (l *Ledger) Tend(ctx context.Context, alive func(owner string) bool) error {
	return l.agree(ctx, alive, Kind.Volatile)
}

func (l *Ledger) agree(ctx context.Context, alive func(owner string) bool, sweep func(Kind) bool) error {
	// The objects first: a row for what is made from here on comes before it.
	objects, err := l.objects(ctx)
	errs := []error{err}
	refs, err := l.store.Resources(ctx, "")
	if err != nil {
		return fmt.Errorf("ledger: list resources: %w", err)
	}
	known := map[string]bool{}
	for _, ref := range slices.Backward(refs) {
		known[ref.Kind+" "+ref.Name] = true
		k, ok := l.kinds[ref.Kind]
		if !ok {
			errs = append(errs, fmt.Errorf("ledger: %s %s: no such kind of resource", ref.Kind, ref.Name))
			continue
		}
		if l.abandoned(k, ref, alive(ref.Owner)) {
			l.log.Info("recover: release", "kind", ref.Kind, "name", ref.Name, "owner", ref.Owner, "state", ref.State)
			errs = append(errs, l.Release(ctx, ref))
		}
	}
	for _, o := range objects {
		if k := l.kinds[o.Kind]; sweep(k) && !known[o.Kind+" "+o.Name] {
			l.log.Warn("recover: release an object without a row", "kind", o.Kind, "name", o.Name)
			errs = append(errs, l.unmake(ctx, k, o))
		}
	}
	return errors.Join(errs...)
}

// abandoned says that nobody else will release the object of a row.
func (l *Ledger) abandoned(k Kind, ref Ref, alive bool) bool {
	refused := ref.State == Releasing && ref.Error != ""
	switch {
	case ref.Run == l.run && !refused:
		return false // its owner is at work, or holds it
	case !alive, k.Volatile() && ref.BootID != l.bootID:
		return true
	case ref.State == Held:
		return false
	}
	return ref.Run != l.run || k.Volatile() // the names of others may be used again: that is for the owner
}

// objects lists everything that bears our tag, what uses others before them.
func (l *Ledger) objects(ctx context.Context) ([]Ref, error) {
	var all []Ref
	var errs []error
	for _, k := range slices.Backward(l.order) {
		refs, err := k.List(ctx)
		errs = append(errs, err)
		all = append(all, refs...)
	}
	return all, errors.Join(errs...)
}

// Retry releases the volatile things that could not be released before, each after a
// pause that grows with every attempt. It may be called at any time: their names are
// never used twice.
func (l *Ledger) Retry(ctx context.Context) error {
	return l.release(ctx, []string{""}, func(r Ref) bool {
		k, ok := l.kinds[r.Kind]
		return r.State == Releasing && r.Error != "" && ok && k.Volatile() && l.due(r.ID, time.Now())
	})
}

// due says whether it is time to try the release of row id again, and when the next
// time is.
func (l *Ledger) due(id string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.stuck[id]
	if now.Before(b.next) {
		return false
	}
	b.pause = min(max(2*b.pause, minPause), maxPause)
	b.next = now.Add(b.pause)
	l.stuck[id] = b
	return true
}

// ForgetVolatile deletes the rows of volatile objects without touching the objects:
// in a copied state directory they are the original installation's.
func (l *Ledger) ForgetVolatile(ctx context.Context) error {
	refs, err := l.store.Resources(ctx, "")
	if err != nil {
		return fmt.Errorf("ledger: list resources: %w", err)
	}
	for _, ref := range refs {
		if k, ok := l.kinds[ref.Kind]; ok && k.Volatile() {
			if err := l.store.DeleteResource(ctx, ref.ID); err != nil {
				return fmt.Errorf("ledger: forget %s %s: %w", ref.Kind, ref.Name, err)
			}
		}
	}
	return nil
}

// Repair makes what owner holds of the kinds and is not there again, as it was, and
// returns it.
func (l *Ledger) Repair(ctx context.Context, owner string, kinds ...string) (made []Ref, err error) {
	held, err := l.Held(ctx, owner)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ref := range held {
		if !slices.Contains(kinds, ref.Kind) {
			continue
		}
		presence, err := l.Inspect(ctx, ref)
		if err == nil && presence == Absent {
			if err = l.kinds[ref.Kind].Acquire(ctx, ref); err == nil {
				l.log.Warn("what somebody has removed is made again", "kind", ref.Kind, "name", ref.Name, "owner", owner)
				made = append(made, ref)
			}
		}
		errs = append(errs, err)
	}
	return made, errors.Join(errs...)
}
