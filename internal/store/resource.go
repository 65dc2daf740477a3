package store

import (
	"context"
	"database/sql"
	"encoding/json"

	"banger/internal/resource"
)

// InsertResource implements resource.Store.
func (db *DB) InsertResource(ctx context.Context, r resource.Ref) (int64, error) {
	var seq int64
	err := db.run(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx,
			`INSERT INTO resource (id, owner, kind, name, spec, state, boot_id, run) VALUES (?,?,?,?,?,?,?,?)`,
			r.ID, r.Owner, r.Kind, r.Name, string(r.Spec), r.State, r.BootID, r.Run)
		if err != nil {
			return err
		}
		seq, err = res.LastInsertId()
		return err
	})
	return seq, err
}

// UpdateResource implements resource.Store.
func (db *DB) UpdateResource(ctx context.Context, r resource.Ref) error {
	return db.run(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE resource SET state=?, run=?, error=? WHERE id=?`, r.State, r.Run, r.Error, r.ID)
		return err
	})
}

// DeleteResource implements resource.Store.
func (db *DB) DeleteResource(ctx context.Context, id string) error {
	return db.run(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM resource WHERE id=?`, id)
		return err
	})
}

// Resources implements resource.Store.
func (db *DB) Resources(ctx context.Context, owner string) ([]resource.Ref, error) {
	query, args := `SELECT seq, id, owner, kind, name, spec, state, boot_id, run, error FROM resource `, []any{}
	if owner != "" { // a query of its own, so that it goes by the index
		query, args = query+`WHERE owner = ? `, append(args, owner)
	}
	rows, err := db.sql.QueryContext(ctx, query+`ORDER BY seq`, args...)
	return collect(rows, err, func(rows *sql.Rows, r *resource.Ref) error {
		var spec string
		err := rows.Scan(&r.Seq, &r.ID, &r.Owner, &r.Kind, &r.Name, &spec, &r.State, &r.BootID, &r.Run, &r.Error)
		r.Spec = json.RawMessage(spec)
		return err
	})
}
