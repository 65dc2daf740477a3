// Package store keeps what must survive the daemon in SQLite. It is the only
// package with SQL, and implements the Store interfaces that resource, image,
// kernel and vm declare.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/failpoint"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations/*.sql
var migrations embed.FS

// DB is an open database. It is safe for concurrent use.
type DB struct{ sql *sql.DB }

// Open opens the database at path, makes it where there is none, and migrates it
// to the newest schema. It reads all of it first, so that damage is found before
// anything is done on the word of what is left. Errors: ErrDamaged (internal);
// unsupported, for a database of a newer banger; unavailable, for one that another
// process has locked; no_space.
func Open(ctx context.Context, path string) (*DB, error) {
	if err := keepPrivate(path); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	// One connection: SQLite has one writer anyway, and a transaction that waits
	// in Go never meets SQLITE_BUSY.
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	if err = check(ctx, db); err == nil {
		err = migrate(ctx, db)
	}
	if err == nil {
		err = (&DB{db}).read(ctx)
	}
	if err == nil {
		err = reserve(ctx, db)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, mapError(err)), db.Close())
	}
	return &DB{db}, nil
}

// keepPrivate makes the file, or its mode, such that only its owner may read it: the
// keys of VMs are in it. SQLite gives its journals the mode of the database.
func keepPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err // the path is said already
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		return err
	}
	current, newest, err := provider.GetVersions(ctx)
	if err != nil {
		return err
	}
	if current > newest {
		return api.Errorf(api.CodeUnsupported, "its schema is version %d, this bangerd knows %d", current, newest).
			WithHint("install the newer banger again")
	}
	_, err = provider.Up(ctx)
	return err
}

// Close closes the database.
func (db *DB) Close() error { return db.sql.Close() }

// tx runs fn in a transaction that is committed if fn returns nil. What is what it
// does, for failpoints.
func (db *DB) tx(ctx context.Context, what string, fn func(*sql.Tx) error) error {
	err := failpoint.Pass("store", what)
	if err == nil {
		err = db.run(ctx, fn)
	}
	if err == nil {
		failpoint.Reach("store", what+".committed")
	}
	return err
}

// run runs fn in a transaction, and once more where it found the disk full.
func (db *DB) run(ctx context.Context, fn func(*sql.Tx) error) error {
	err := db.try(ctx, fn)
	if isFull(err) && restart(ctx, db.sql) == nil {
		err = db.try(ctx, fn)
	}
	if ctx.Err() != nil && (errors.Is(err, sql.ErrTxDone) || isInterrupt(err)) {
		return fmt.Errorf("use database: %w", ctx.Err()) // which rolled it back
	}
	return err
}

func isInterrupt(err error) bool {
	se, ok := errors.AsType[*sqlite.Error](err)
	return ok && se.Code() == sqlite3.SQLITE_INTERRUPT
}

func (db *DB) try(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := db.sql.BeginTx(ctx, nil)
	if err != nil {
		return mapError(err)
	}
	if err := fn(tx); err != nil {
		return errors.Join(mapError(err), rollback(tx))
	}
	return mapError(tx.Commit())
}

// exec is tx for one statement.
func (db *DB) exec(ctx context.Context, what, query string, args ...any) error {
	return db.tx(ctx, what, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	})
}

func rollback(tx *sql.Tx) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	return nil
}

// mapError gives the errors that users can do something about their code.
func mapError(err error) error {
	se, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch code := se.Code(); {
	case isFull(err):
		return api.Errorf(api.CodeNoSpace, "write database: %w", err).WithHint("free space in the state directory")
	case code&0xff == sqlite3.SQLITE_BUSY, code&0xff == sqlite3.SQLITE_LOCKED:
		return api.Errorf(api.CodeUnavailable, "use database: another process has locked it: %w", err).
			WithHint("fuser banger.db, in the state directory, tells which; end it and try again")
	case code&0xff == sqlite3.SQLITE_CORRUPT, code&0xff == sqlite3.SQLITE_NOTADB:
		return damaged(err)
	}
	return err
}

// isUnique says that err is the refusal of a row that exists, with one of the
// columns, written as table.column, where any are given.
func isUnique(err error, columns ...string) bool {
	se, ok := errors.AsType[*sqlite.Error](err)
	if !ok || se.Code() != sqlite3.SQLITE_CONSTRAINT_UNIQUE && se.Code() != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY {
		return false
	}
	return len(columns) == 0 || slices.ContainsFunc(columns, func(c string) bool {
		return strings.Contains(se.Error(), "failed: "+c+" ") // as in UNIQUE constraint failed: vm.name (2067)
	})
}

// collect scans every row of a query.
func collect[T any](rows *sql.Rows, err error, scan func(*sql.Rows, *T) error) ([]T, error) {
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var v T
		if err := scan(rows, &v); err != nil {
			return nil, mapError(err)
		}
		all = append(all, v)
	}
	return all, mapError(rows.Err())
}

// inUse is the error for an object that VMs still need.
func inUse(what, name string, vms []string) error {
	return api.Errorf(api.CodeConflict, "remove %s %q: used by VM %s", what, name, strings.Join(vms, ", ")).
		WithHint("banger vm delete %s", strings.Join(vms, " "))
}
