package resource

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Problem is how the ledger and the host can disagree.
type Problem string

// The problems that Check finds.
const (
	// Stuck: the host refused to let go of the object, Detail is its reason. It is
	// tried again, by Retry or by the object's owner.
	Stuck Problem = "stuck"
	// Missing: the object is held, and is not there.
	Missing Problem = "missing"
	// Taken: the object is held, and what has its name is something else, which is
	// never touched.
	Taken Problem = "foreign"
	// Untracked: an object bears our tag, and no row tells of it. Recover releases it.
	Untracked Problem = "untracked"
	// Unfinished: an earlier run of the daemon began to make or unmake the object.
	// Recover releases it.
	Unfinished Problem = "unfinished"
	// Unknown: whether the object is there cannot be found out, Detail is why.
	Unknown Problem = "unknown"
)

// Finding is one disagreement between the ledger and the host.
type Finding struct {
	Problem Problem
	Owner   string // as in Ref; empty where no row tells
	Kind    string
	Name    string
	Durable bool   // of one that is untracked: it survives the host's boot
	Detail  string // the host's words, where it said any
}

func (f Finding) String() string {
	text := fmt.Sprintf("%s %s is %s", f.Kind, f.Name, f.Problem)
	if f.Owner != "" {
		text += ", held for " + f.Owner
	}
	if f.Detail != "" {
		text += ": " + f.Detail
	}
	return text
}

// Check compares the ledger with the host and changes neither, so that its store may
// be read-only. What a daemon that runs is doing meanwhile is no finding of its own
// ledger, but may be one of another ledger on the same rows.
func (l *Ledger) Check(ctx context.Context) ([]Finding, error) {
	objects, err := l.objects(ctx) // first, as in Recover
	errs := []error{err}
	refs, err := l.store.Resources(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("ledger: list resources: %w", err)
	}
	var found []Finding
	known := map[string]bool{}
	for _, ref := range refs {
		known[ref.Kind+" "+ref.Name] = true
		if f, ok := l.examine(ctx, ref); ok {
			found = append(found, f)
		}
	}
	for _, o := range objects {
		if !known[o.Kind+" "+o.Name] {
			found = append(found, Finding{Problem: Untracked, Kind: o.Kind, Name: o.Name, Durable: !l.kinds[o.Kind].Volatile()})
		}
	}
	found, err = l.confirm(ctx, found)
	return found, errors.Join(append(errs, err)...)
}

// CheckOwner is Check for what is held on behalf of owner alone.
func (l *Ledger) CheckOwner(ctx context.Context, owner string) ([]Finding, error) {
	held, err := l.Held(ctx, owner)
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, ref := range held {
		if f, ok := l.examine(ctx, ref); ok {
			found = append(found, f)
		}
	}
	return l.confirm(ctx, found)
}

// examine looks at the object of one row.
func (l *Ledger) examine(ctx context.Context, ref Ref) (Finding, bool) {
	f := Finding{Owner: ref.Owner, Kind: ref.Kind, Name: ref.Name}
	k, ok := l.kinds[ref.Kind]
	switch {
	case !ok:
		f.Problem, f.Detail = Unknown, "no such kind of resource"
		return f, true
	case k.Volatile() && ref.BootID != l.bootID:
		return f, false // it went with the host's last boot, its row goes with the next start
	case ref.State == Releasing && ref.Error != "":
		f.Problem, f.Detail = Stuck, ref.Error
		return f, true
	case ref.State != Held:
		f.Problem = Unfinished
		return f, ref.Run != l.run
	}
	presence, err := k.Inspect(ctx, ref)
	switch {
	case err != nil:
		f.Problem, f.Detail = Unknown, err.Error()
	case presence == Absent:
		f.Problem = Missing
	case presence == Foreign:
		f.Problem = Taken
	default:
		return f, false
	}
	return f, true
}

// confirm drops findings about objects that an owner was releasing, which is seen by
// their rows: those are not held any more.
func (l *Ledger) confirm(ctx context.Context, found []Finding) ([]Finding, error) {
	if len(found) == 0 {
		return nil, nil
	}
	refs, err := l.store.Resources(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("ledger: list resources: %w", err)
	}
	held := map[string]bool{}
	for _, ref := range refs {
		held[ref.Kind+" "+ref.Name] = ref.State == Held
	}
	return slices.DeleteFunc(found, func(f Finding) bool {
		return (f.Problem == Missing || f.Problem == Taken) && !held[f.Kind+" "+f.Name]
	}), nil
}
