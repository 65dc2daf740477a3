package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	"banger/api"

	"github.com/pressly/goose/v3"
)

// OpenReadOnly opens the database at path to look at it, also while a daemon has it
// open. It changes nothing: it does not migrate, and refuses a database of another
// schema than this program's with the code unsupported.
func OpenReadOnly(ctx context.Context, path string) (*DB, error) {
	db, err := openReadOnly(path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := sameSchema(ctx, db); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, mapError(err)), db.Close())
	}
	return &DB{db}, nil
}

// openReadOnly does not read anything yet.
func openReadOnly(path string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&_pragma=query_only(1)&_pragma=busy_timeout(5000)")
}

func sameSchema(ctx context.Context, db *sql.DB) error {
	var has int64
	err := db.QueryRowContext(ctx, "SELECT max(version_id) FROM "+goose.DefaultTablename).Scan(&has)
	if err != nil {
		return err
	}
	if knows := newest(); has != knows {
		return api.Errorf(api.CodeUnsupported, "its schema is version %d, this program knows %d", has, knows).
			WithHint("use the programs of one version of banger")
	}
	return nil
}

// newest is the version of the last migration.
func newest() int64 {
	files, err := migrations.ReadDir("migrations")
	if err != nil {
		panic(err) // they are part of the program
	}
	var version int64
	for _, f := range files {
		if v, err := goose.NumericComponent(f.Name()); err == nil {
			version = max(version, v)
		}
	}
	return version
}
