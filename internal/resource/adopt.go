package resource

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/linux"
)

// HandlesSchema is the version of Handles that this program writes, and the newest
// that it reads.
const HandlesSchema = 1

// Handles is what an owner holds on the host, as a second copy repeats it.
type Handles struct {
	Schema       int      `json:"schema"`
	Installation string   `json:"installation"`
	BootID       string   `json:"boot_id"`
	NetNS        string   `json:"netns"` // the network namespace in which links and tables are
	Process      *Process `json:"process,omitempty"`
	Objects      []Object `json:"objects"`
}

// Process is a process, told from later ones of its id by when it was started.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks since the boot; starttime of proc_pid_stat(5)
}

// Object is a row of the ledger.
type Object struct {
	Owner string          `json:"owner"`
	Kind  string          `json:"kind"`
	Name  string          `json:"name"`
	Spec  json.RawMessage `json:"spec,omitempty"`
}

// Handles returns what is held on behalf of owners, in order of acquisition.
func (l *Ledger) Handles(ctx context.Context, installation string, owners ...string) (Handles, error) {
	here, err := linux.NetNSID()
	h := Handles{Schema: HandlesSchema, Installation: installation, BootID: l.bootID, NetNS: here}
	if err != nil {
		return h, err
	}
	for _, owner := range owners {
		held, err := l.Held(ctx, owner)
		if err != nil {
			return h, err
		}
		for _, ref := range held {
			h.Objects = append(h.Objects, Object{Owner: ref.Owner, Kind: ref.Kind, Name: ref.Name, Spec: ref.Spec})
		}
	}
	return h, nil
}

// Current says whether h tells of this boot of the host and of an installation.
func (l *Ledger) Current(h Handles, installation string) bool {
	return h.BootID == l.bootID && h.Installation == installation
}

// Unknown returns the objects that bear our tag and have no row, those of a kind alone
// where one is given. Recover would release them.
func (l *Ledger) Unknown(ctx context.Context, kind string) ([]Ref, error) {
	var objects []Ref
	var err error
	if k, ok := l.kinds[kind]; ok {
		objects, err = k.List(ctx)
	} else {
		objects, err = l.objects(ctx)
	}
	if err != nil || len(objects) == 0 {
		return nil, err
	}
	refs, err := l.store.Resources(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("ledger: list resources: %w", err)
	}
	known := map[string]bool{}
	for _, ref := range refs {
		known[ref.Kind+" "+ref.Name] = true
	}
	return slices.DeleteFunc(objects, func(o Ref) bool { return known[o.Kind+" "+o.Name] }), nil
}

// Adopt records an object that is there already, one of Unknown, as held on behalf of
// owner. Rows of the owner and the kind whose object is absent are dropped: one that
// has such rows and another object knows less than the host.
func (l *Ledger) Adopt(ctx context.Context, o Object) error {
	k, ok := l.kinds[o.Kind]
	if !ok {
		return fmt.Errorf("adopt %s %s: no such kind of resource", o.Kind, o.Name)
	}
	held, err := l.Held(ctx, o.Owner)
	if err != nil {
		return err
	}
	for _, ref := range held {
		if ref.Kind != o.Kind {
			continue
		}
		if presence, err := k.Inspect(ctx, ref); err != nil || presence != Absent {
			continue
		}
		if err := l.store.DeleteResource(ctx, ref.ID); err != nil {
			return fmt.Errorf("ledger: forget %s %s: %w", ref.Kind, ref.Name, err)
		}
	}
	spec, err := json.Marshal(o.Spec) // in one line, and null where there is none
	if err != nil {
		return fmt.Errorf("adopt %s %s: %w", o.Kind, o.Name, err)
	}
	ref := Ref{
		ID: RandomName(8), Owner: o.Owner, Kind: o.Kind, Name: o.Name, Spec: spec, State: Held, BootID: l.bootID, Run: l.run,
	}
	if _, err := l.store.InsertResource(ctx, ref); err != nil {
		return fmt.Errorf("ledger: record %s %s: %w", o.Kind, o.Name, err)
	}
	l.log.Warn("recover: an object without a row is taken up again", "kind", o.Kind, "name", o.Name, "owner", o.Owner)
	return nil
}

// SetAside moves a directory of which nobody knows what it is to lost-<time>/<name>
// below the root, and returns its new path.
func (d *Dir) SetAside(name string) (string, error) {
	to := filepath.Join(d.root, "lost-"+time.Now().UTC().Format("20060102T150405"), filepath.FromSlash(name))
	err := os.MkdirAll(filepath.Dir(to), 0o700)
	if err == nil {
		_, err = os.Lstat(to)
		if err == nil { // the clock has been here before
			to += "-" + RandomName(4)
		}
		err = os.Rename(d.Path(name), to)
	}
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", d.Path(name), err)
	}
	return to, nil
}

// UnknownDirs returns the names of the directories directly in parent that have no row.
func (l *Ledger) UnknownDirs(ctx context.Context, kind, parent string) ([]string, error) {
	unknown, err := l.Unknown(ctx, kind)
	var names []string
	for _, o := range unknown {
		if dir, _, ok := strings.Cut(o.Name, "/"); ok && dir == parent {
			names = append(names, o.Name)
		}
	}
	return names, err
}
