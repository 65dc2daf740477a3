// Package resource is the ledger: the durable list of every thing on the host
// that must be given back, and the only way to make or unmake one.
//
// The rule is that intent precedes effect. To acquire, a row "acquiring" is
// committed, the object is made, the row becomes "held". To release, the row
// becomes "releasing", the object is unmade, its absence is seen, the row is
// deleted. So a crash at any point leaves a row for whatever may exist, and
// Recover finishes what was begun. An object's name is in the row before the
// object exists and is never used twice.
//
// What an object is made of is the business of its Kind. Kinds that only need
// directories use Dir, in this package; the others are in network, disk and vmm.
package resource

import (
	"context"
	"encoding/json"
)

// State of a row of the ledger.
type State string

// The states of a row.
const (
	Acquiring State = "acquiring" // the object may exist, wholly or in part
	Held      State = "held"      // the object exists
	Releasing State = "releasing" // the object may still exist, wholly or in part
)

// Presence is what Inspect finds in an object's place.
type Presence int

// The findings of Inspect.
const (
	Absent  Presence = iota // nothing of that name
	Ours                    // the object, or a part of it
	Foreign                 // something of that name which is not the object
)

func (p Presence) String() string { return [...]string{"absent", "ours", "foreign"}[p] }

// Ref is a row of the ledger: one object on the host.
type Ref struct {
	ID     string // random
	Owner  string // on whose behalf it is held, e.g. "vm/1f2e3d4c5b6a"
	Kind   string
	Name   string // unique within the ledger, chosen before the object is made
	Spec   json.RawMessage
	State  State
	BootID string // the host's boot during which it was made
	Run    string // the run of the daemon that changed the row last
	Error  string // why the last attempt to release it did not succeed
	Seq    int64  // order of acquisition; release goes backwards
}

// Kind makes and unmakes one sort of object. All methods are idempotent and may
// be called concurrently for different refs.
type Kind interface {
	// Kind is the word in Ref.Kind.
	Kind() string

	// Volatile says that objects of this kind do not survive the host's boot.
	Volatile() bool

	// Acquire makes the object. Where it exists, as after a crash, it is
	// completed or made anew.
	Acquire(context.Context, Ref) error

	// Inspect looks for the object and changes nothing.
	Inspect(context.Context, Ref) (Presence, error)

	// Release unmakes the object; nil when it is absent.
	Release(context.Context, Ref) error

	// List returns every object of this kind that bears this installation's tag,
	// with Kind and Name filled in, whether or not the ledger knows it.
	List(context.Context) ([]Ref, error)
}

// Apart is a Kind whose objects nothing else of their owner rests upon, and which the kernel
// takes a while to unmake: the owner's others are released at the same time.
type Apart interface {
	Kind
	Apart() bool
}

// Store keeps the rows. Every method is a transaction that is durable when it
// returns.
type Store interface {
	InsertResource(context.Context, Ref) (seq int64, err error)
	UpdateResource(context.Context, Ref) error // state, run, error
	DeleteResource(ctx context.Context, id string) error
	Resources(ctx context.Context, owner string) ([]Ref, error) // all owners' where owner is empty; by Seq
}
