package store

import (
	"context"
	"database/sql"
	"time"

	"banger/api"
	"banger/internal/vm"
)

// InsertVM implements vm.Store.
func (db *DB) InsertVM(ctx context.Context, r vm.Record) error {
	_, err := db.sql.ExecContext(ctx, `INSERT INTO vm (id, owner, name, image, image_id, kernel, cpus, memory, root_size,
		ephemeral, wanted, sync, machine_id, created, last_error) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		r.ID, r.Owner, r.Name, r.Image, r.ImageID, r.Kernel, r.CPUs, r.Memory, r.RootSize,
		r.Ephemeral, r.Wanted, r.Sync, r.MachineID, r.Created.UnixNano(), r.LastError)
	if isUnique(err) {
		return api.Errorf(api.CodeAlreadyExists, "create VM %q: a VM of that name exists", r.Name).
			WithHint("banger vm exec %s -- COMMAND runs a command in it; banger vm delete %s removes it", r.Name, r.Name)
	}
	return mapError(err)
}

// UpdateVM implements vm.Store.
func (db *DB) UpdateVM(ctx context.Context, r vm.Record) error {
	_, err := db.sql.ExecContext(ctx, `UPDATE vm SET wanted=?, last_error=? WHERE id=?`, r.Wanted, r.LastError, r.ID)
	return mapError(err)
}

// DeleteVM implements vm.Store.
func (db *DB) DeleteVM(ctx context.Context, id string) error {
	_, err := db.sql.ExecContext(ctx, `DELETE FROM vm WHERE id=?`, id)
	return mapError(err)
}

// VMs implements vm.Store.
func (db *DB) VMs(ctx context.Context) ([]vm.Record, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT id, owner, name, image, image_id, kernel, cpus, memory, root_size,
		ephemeral, wanted, sync, machine_id, created, last_error FROM vm ORDER BY created`)
	return collect(rows, err, func(rows *sql.Rows, r *vm.Record) error {
		var created int64
		err := rows.Scan(&r.ID, &r.Owner, &r.Name, &r.Image, &r.ImageID, &r.Kernel, &r.CPUs, &r.Memory, &r.RootSize,
			&r.Ephemeral, &r.Wanted, &r.Sync, &r.MachineID, &created, &r.LastError)
		r.Created = time.Unix(0, created)
		return err
	})
}
