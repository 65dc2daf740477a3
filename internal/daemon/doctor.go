package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"banger/api"
	"banger/internal/config"
	"banger/internal/doctor"
	"banger/internal/identity"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/resource"
	"banger/internal/space"
	"banger/internal/store"
)

// looker implements server.Doctor for the daemon that serves.
type looker struct {
	version  string
	config   doctor.Config
	repairer doctor.Repairer
}

// Examine looks and changes nothing.
func (l *looker) Examine(ctx context.Context, caller uint32) api.Diagnosis {
	return api.Diagnosis{Version: l.version, Served: true, Findings: doctor.Examine(ctx, l.config, caller)}
}

// Repair puts what is ours in order, and looks again.
func (l *looker) Repair(ctx context.Context, caller uint32) api.Diagnosis {
	done := doctor.Repair(ctx, l.config, l.repairer)
	d := l.Examine(ctx, caller)
	d.Repairs = done
	return d
}

// Diagnose looks at an installation that no daemon serves. It starts none, and changes
// nothing: the database is read from a copy, since SQLite makes files beside one that
// it opens.
func Diagnose(ctx context.Context, paths config.Paths, version string) api.Diagnosis {
	var found []api.Finding
	add := func(group, check string, severity api.Severity, err error) {
		e := api.AsError(err)
		found = append(found, api.Finding{Group: group, Check: check, Severity: severity, Message: e.Message, Advice: e.Hint})
	}
	cfg, err := config.Load(paths.Config)
	if err != nil {
		add("daemon", "configuration", api.SeverityError, err)
	}
	what := doctor.Config{
		Paths: paths, Group: cfg.Group, Drivers: engines(cfg),
		Room: space.Room{Dir: paths.State, Reserve: int64(cfg.Storage.Reserve)},
	}
	found = append(found, checkLock(paths))
	done, err := attachState(ctx, &what, cfg)
	defer done()
	if err != nil {
		add("database", "readable", api.SeverityError, err)
	}
	return api.Diagnosis{Version: version, Findings: append(found, doctor.Examine(ctx, what, uint32(os.Geteuid()))...)}
}

// checkLock says whether a daemon is there that does not answer.
func checkLock(paths config.Paths) api.Finding {
	f := api.Finding{Group: "daemon", Check: "running", Severity: api.SeverityOK, Message: "no daemon runs; root's next command starts one"}
	held, holder, err := linux.LockHeld(paths.Lock())
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.Message = "no daemon answers you"
	case err != nil:
		f.Severity, f.Message = api.SeverityWarning, err.Error()
	case held:
		pid, run, _ := strings.Cut(holder, "\n")
		f.Severity, f.Message = api.SeverityError, "the daemon, process "+pid+", does not answer on "+paths.Socket()
		f.Meaning, f.Advice = "No command works. VMs run on.", "Look at bangerd.log in "+paths.State+"; kill "+pid+" ends it, and VMs survive that."
		if run != "" && run != paths.Run {
			f.Meaning, f.Advice = "It serves on the socket in "+run+".", "BANGER_RUN_DIR="+run
		}
	}
	return f
}

// attachState lets what is kept in the state directory be examined, as far as there is
// anything and the caller may look into it. Done removes what it made elsewhere.
func attachState(ctx context.Context, what *doctor.Config, cfg config.Config) (done func(), err error) {
	done = func() {}
	original := filepath.Join(what.Paths.State, "banger.db")
	if _, err := os.Stat(original); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return done, nil // there was no daemon yet; or only root may look
		}
		return done, err
	}
	dir, err := os.MkdirTemp("", "banger-doctor") // only the caller may look into it
	if err != nil {
		return done, err
	}
	done = func() { _ = os.RemoveAll(dir) }
	database := filepath.Join(dir, "banger.db")
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(database+suffix, original+suffix); err != nil {
			if errors.Is(err, fs.ErrPermission) || suffix != "" && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return done, err
		}
	}
	if _, err := os.Stat(database); err != nil {
		return done, nil // only root may read it
	}
	what.Database = func(ctx context.Context) []api.Finding { return checkDatabase(ctx, database) }
	db, err := store.OpenReadOnly(ctx, database)
	if err != nil {
		return done, nil // which checkDatabase says
	}
	done = func() { _ = db.Close(); _ = os.RemoveAll(dir) }
	what.VMs = func(ctx context.Context) ([]api.VM, error) { return knownVMs(ctx, db) }
	id, minted, err := identity.Load(what.Paths.State, what.Paths.Run)
	if err != nil || minted {
		return done, err // a copy has nothing on the host
	}
	what.Network = network.New(network.Config{Installation: id.ID, Settings: db, Subnet: cfg.Network.Subnet.Prefix})
	boot, err := linux.BootID()
	if err != nil {
		return done, err
	}
	host, err := newParts(what.Paths, id.ID)
	if err != nil {
		return done, nil // which the check of cgroups says
	}
	what.Ledger = resource.New(db, boot, slog.New(slog.DiscardHandler), host.kinds...)
	return done, nil
}

// knownVMs are the VMs of a database, of which only the names matter.
func knownVMs(ctx context.Context, db *store.DB) ([]api.VM, error) {
	recs, err := db.VMs(ctx)
	var out []api.VM
	for _, r := range recs {
		out = append(out, api.VM{ID: r.ID, Name: r.Name, Owner: r.Owner})
	}
	return out, err
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// checkDatabase reads all of the database.
func checkDatabase(ctx context.Context, path string) []api.Finding {
	f := api.Finding{Group: "database", Check: "integrity", Severity: api.SeverityOK, Message: "the database is whole"}
	c, err := store.Examine(ctx, path)
	switch {
	case err != nil:
		e := api.AsError(err)
		f.Severity, f.Message, f.Advice = api.SeverityError, e.Message, e.Hint
		f.Meaning = "The daemon does not know its VMs, images and kernels by it."
	case len(c.Damage) > 0:
		f.Severity, f.Message = api.SeverityError, "the database is damaged: "+strings.Join(strings.Fields(strings.Join(c.Damage, "; ")), " ")
		f.Meaning = "What is said of VMs, images and kernels may be wrong, and the daemon may not start again."
		f.Advice = "Put banger.db back from a backup, or start the daemon again: it sets the database aside and takes VMs, images and kernels up from their second copies (docs/recovery.md)."
	case c.Schema > c.Knows:
		f.Severity, f.Message = api.SeverityError, "the database is of a newer version of banger"
		f.Meaning, f.Advice = "This version's daemon does not start.", "Install the newer banger again."
	case c.Schema < c.Knows:
		f.Message = "the database is whole, and of an older version of banger: the daemon's next start brings it up to date"
	}
	return []api.Finding{f}
}
