package store

import (
	"context"
	"database/sql"
	"fmt"

	"banger/api"

	"github.com/pressly/goose/v3"
)

// Condition is what Examine finds.
type Condition struct {
	Damage []string // what integrity_check and foreign_key_check complain about
	Schema int64    // version of the database's schema
	Knows  int64    // that of this program
}

// maxDamage bounds the complaints about one database.
const maxDamage = 10

// Examine reads the whole database at path and changes nothing; it may be of another
// schema. An error says that it could not be read at all.
func Examine(ctx context.Context, path string) (Condition, error) {
	c := Condition{Knows: newest()}
	db, err := openReadOnly(path)
	if err != nil {
		return c, fmt.Errorf("open database %s: %w", path, mapError(err))
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, fmt.Sprintf("PRAGMA integrity_check(%d)", maxDamage))
	said, err := collect(rows, err, scanString)
	if err != nil {
		return c, fmt.Errorf("read database %s: %w", path, err)
	}
	if len(said) != 1 || said[0] != "ok" {
		c.Damage = said
	}
	rows, err = db.QueryContext(ctx, "SELECT printf('row %s of table %s names one of %s that is not there', rowid, \"table\", parent) FROM pragma_foreign_key_check LIMIT ?", maxDamage)
	orphans, err := collect(rows, err, scanString)
	if err != nil {
		return c, fmt.Errorf("read database %s: %w", path, err)
	}
	c.Damage = append(c.Damage, orphans...)
	var version sql.NullInt64
	if err := db.QueryRowContext(ctx, "SELECT max(version_id) FROM "+goose.DefaultTablename).Scan(&version); err != nil {
		return c, api.Errorf(api.CodeUnsupported, "read database %s: it is not one of banger's: %w", path, err)
	}
	c.Schema = version.Int64
	return c, nil
}
