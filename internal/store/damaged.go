package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"banger/api"
	"banger/internal/resource"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrDamaged is wrapped by the error of Open for a file that is no database of banger's,
// or not a whole one. No other error says that: a database that is locked, on a full
// disk or of a newer banger is as good as before.
var ErrDamaged = errors.New("it is damaged")

// SetAside moves the database at path away with its journals and returns its new
// path, or that of the journals where there is nothing else of it; empty where there
// is nothing at all.
func SetAside(path string) (aside string, err error) {
	for _, suffix := range []string{"", "-wal", "-shm"} { // a database without its journal is not whole; a journal alone is Torn
		if _, serr := os.Lstat(path + suffix); errors.Is(serr, fs.ErrNotExist) {
			continue
		}
		switch {
		case aside == "":
			aside, err = resource.SetAside(path + suffix)
		case strings.HasPrefix(aside, path+"-"): // nothing to belong to
			_, err = resource.SetAside(path + suffix)
		default:
			err = os.Rename(path+suffix, aside+suffix)
		}
		if err != nil {
			return aside, fmt.Errorf("set database %s aside: %w", path, err)
		}
	}
	return aside, nil
}

// Torn says that of the database at path there is the journal, and nothing that it
// could belong to: SQLite would remove it.
func Torn(path string) bool {
	wal, err := os.Lstat(path + "-wal")
	if err != nil || wal.Size() == 0 {
		return false
	}
	db, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && db.Size() == 0
}

// check reads the whole file; see "PRAGMA integrity_check" in SQLite's manual. One that
// has tables and does not say of which schema they are is not ours.
func check(ctx context.Context, db *sql.DB) error {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return damaged(errors.New(strings.Join(strings.Fields(verdict), " ")))
	}
	var tables, versions int
	err := db.QueryRowContext(ctx, "SELECT count(*), count(*) FILTER (WHERE name = ?) FROM sqlite_schema WHERE type = 'table'",
		goose.DefaultTablename).Scan(&tables, &versions)
	if err == nil && tables > 0 && versions == 0 {
		return damaged(errors.New("its tables are not banger's"))
	}
	return err
}

// read reads every row, as what it stands for.
func (db *DB) read(ctx context.Context) error {
	_, vms := db.VMs(ctx)
	_, images := db.Images(ctx)
	_, layers := db.Layers(ctx)
	_, kernels := db.Kernels(ctx)
	_, resources := db.Resources(ctx, "")
	_, _, settings := db.Setting(ctx, "")
	_, keys := db.SSHKeys(ctx, 0)
	for _, err := range []error{vms, images, layers, kernels, resources, settings, keys} {
		if err == nil || ctx.Err() != nil || api.CodeOf(err) != api.CodeInternal || errors.Is(err, ErrDamaged) {
			if err != nil {
				return err
			}
			continue
		}
		if se, ok := errors.AsType[*sqlite.Error](err); ok && se.Code()&0xff != sqlite3.SQLITE_ERROR { // the disk's fault, say
			return err
		}
		return damaged(err) // a table or a column is missing, or what is in it cannot be
	}
	return nil
}

func damaged(err error) error {
	return api.Errorf(api.CodeInternal, "read database: %w: %w", ErrDamaged, err).
		WithHint("start bangerd again: it sets the database aside and takes up what the state directory tells; docs/recovery.md")
}
