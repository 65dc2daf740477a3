package store

import (
	"context"
	"database/sql"
	"errors"
)

// Setting returns the value kept under name; found is false where none is.
func (db *DB) Setting(ctx context.Context, name string) (value string, found bool, err error) {
	err = db.sql.QueryRowContext(ctx, `SELECT value FROM setting WHERE name=?`, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return value, err == nil, mapError(err)
}

// PutSetting keeps value under name.
func (db *DB) PutSetting(ctx context.Context, name, value string) error {
	return db.exec(ctx, "setting.put", `INSERT INTO setting (name, value) VALUES (?,?)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
}

// maxSSHKeys is how many keys of a user are kept; the oldest go first.
const maxSSHKeys = 16

// AddSSHKey keeps a public key of the user owner; one that is kept already is no error.
func (db *DB) AddSSHKey(ctx context.Context, owner uint32, key string) error {
	return db.tx(ctx, "ssh_key.add", func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO ssh_key (owner, key) VALUES (?,?)`, owner, key); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM ssh_key WHERE owner = ? AND rowid NOT IN
			(SELECT rowid FROM ssh_key WHERE owner = ? ORDER BY rowid DESC LIMIT ?)`, owner, owner, maxSSHKeys)
		return err
	})
}

// SSHKeys returns the public keys of the user owner.
func (db *DB) SSHKeys(ctx context.Context, owner uint32) ([]string, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT key FROM ssh_key WHERE owner=? ORDER BY key`, owner)
	return collect(rows, err, func(rows *sql.Rows, key *string) error { return rows.Scan(key) })
}
