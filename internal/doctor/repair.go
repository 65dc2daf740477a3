package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"banger/api"
	"banger/internal/resource"
)

// Repairer is what a repair needs of the daemon that serves.
type Repairer struct {
	// Tend gives back what the ledger has for nobody, and tries what is stuck again.
	Tend func(context.Context) error
	// Share opens the socket to the group.
	Share func() error
}

// Repair puts what is ours in order: who may do what with our directories, files and
// socket, and what bears our mark on the host and belongs to nobody. It says what it
// did; nothing of anybody else's is touched.
func Repair(ctx context.Context, c Config, r Repairer) []api.Repair {
	var done []api.Repair
	for _, p := range c.places() {
		if wrong, err := p.wrong(); err != nil || wrong == "" {
			continue
		}
		done = append(done, repaired(p.repair(), "%s is root's alone to write to again", p.path))
	}
	for _, f := range c.checkSocket(ctx) {
		if f.Fixable {
			done = append(done, repaired(r.Share(), "members of the group %s may use %s", c.Group, c.Paths.Socket()))
		}
	}
	return append(done, c.repairThings(ctx, r)...)
}

func repaired(err error, format string, args ...any) api.Repair {
	return api.Repair{Message: fmt.Sprintf(format, args...), Error: api.AsError(err)}
}

// repair takes away what others may do with a place. One that is of another sort than
// it should be is left to people.
func (p place) repair() error {
	f, err := os.OpenFile(p.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() != p.dir || !p.dir && !info.Mode().IsRegular() {
		return api.Errorf(api.CodeConflict, "repair %s: it is not what it should be, but %s", p.path, info.Mode().Type()).
			WithHint("move it away")
	}
	return errors.Join(f.Chown(rootUID, -1), f.Chmod(info.Mode()&fs.ModePerm&^p.denied|info.Mode()&os.ModeSticky))
}

// repairThings has the ledger give back what can go, and names what went.
func (c Config) repairThings(ctx context.Context, r Repairer) []api.Repair {
	before, err := c.Ledger.Check(ctx)
	if err != nil {
		return []api.Repair{repaired(err, "compare the ledger with the host")}
	}
	fixable := map[resource.Finding]bool{}
	for _, f := range before {
		if c.thing(f, "").Fixable {
			fixable[f] = true
		}
	}
	if len(fixable) == 0 {
		return nil
	}
	tendErr := r.Tend(ctx)
	after, err := c.Ledger.Check(ctx)
	if err != nil {
		return []api.Repair{repaired(err, "compare the ledger with the host")}
	}
	left := map[string]string{}
	for _, f := range after {
		left[f.Kind+" "+f.Name] = f.Detail
	}
	var done []api.Repair
	for _, f := range before {
		if !fixable[f] {
			continue
		}
		var why error
		if detail, there := left[f.Kind+" "+f.Name]; there {
			why = api.Errorf(api.CodeConflict, "give back %s %s: %s", f.Kind, f.Name, detail)
			if detail == "" && tendErr != nil {
				why = fmt.Errorf("give back %s %s: %w", f.Kind, f.Name, tendErr)
			}
		}
		done = append(done, repaired(why, "%s %s was given back", f.Kind, f.Name))
	}
	return done
}
