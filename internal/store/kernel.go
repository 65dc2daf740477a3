package store

import (
	"context"
	"database/sql"
	"time"

	"banger/api"
	"banger/internal/kernel"
)

// InsertKernel implements kernel.Store.
func (db *DB) InsertKernel(ctx context.Context, k kernel.Kernel) error {
	err := db.exec(ctx, "kernel.insert", `INSERT INTO kernel (name, release, source, dir, is_default, created, size)
		VALUES (?,?,?,?, NOT EXISTS (SELECT 1 FROM kernel WHERE is_default), ?,?)`,
		k.Name, k.Release, k.Source, k.Dir, k.Created.UnixNano(), k.Size)
	if isUnique(err) {
		return api.Errorf(api.CodeAlreadyExists, "import kernel %q: a kernel of that name exists", k.Name).
			WithHint("banger kernel rm %s, or choose another name", k.Name)
	}
	return err
}

// Kernels implements kernel.Store.
func (db *DB) Kernels(ctx context.Context) ([]kernel.Kernel, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT name, release, source, dir, is_default, created, size FROM kernel ORDER BY created`)
	return collect(rows, err, func(rows *sql.Rows, k *kernel.Kernel) error {
		var created int64
		err := rows.Scan(&k.Name, &k.Release, &k.Source, &k.Dir, &k.Default, &created, &k.Size)
		k.Created = time.Unix(0, created)
		return err
	})
}

// SetDefaultKernel implements kernel.Store.
func (db *DB) SetDefaultKernel(ctx context.Context, name string) error {
	return db.tx(ctx, "kernel.default", func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE kernel SET is_default = (name = ?1) WHERE EXISTS (SELECT 1 FROM kernel WHERE name = ?1)`, name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return api.Errorf(api.CodeNotFound, "kernel %q: no such kernel", name).WithHint("banger kernel list")
		}
		return nil
	})
}

// DeleteKernel implements kernel.Store. When the default goes, the newest of the
// others takes its place.
func (db *DB) DeleteKernel(ctx context.Context, name string) error {
	return db.tx(ctx, "kernel.delete", func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT name FROM vm WHERE kernel = ?`, name)
		vms, err := collect(rows, err, scanString)
		if err != nil {
			return err
		}
		if len(vms) > 0 {
			return inUse("kernel", name, vms)
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM kernel WHERE name = ?`, name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return api.Errorf(api.CodeNotFound, "remove kernel %q: no such kernel", name).WithHint("banger kernel list")
		}
		_, err = tx.ExecContext(ctx, `UPDATE kernel SET is_default = 1 WHERE name =
			(SELECT name FROM kernel ORDER BY created DESC LIMIT 1) AND NOT EXISTS (SELECT 1 FROM kernel WHERE is_default)`)
		return err
	})
}
