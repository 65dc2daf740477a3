package store

import (
	"context"
	"database/sql"
	"net/netip"
	"time"

	"banger/api"
	"banger/internal/vm"
)

// columns of the table vm, in the order of fields.
const columns = `id, owner, name, image, image_id, kernel, cpus, memory, root_disk, root_size, disk_size, network, nat, ip, mac, init,
	ephemeral, wanted, sync, machine_id, host_key, created, last_error, uid,
	io_read_bps, io_write_bps, io_read_iops, io_write_iops, vmm`

// InsertVM implements vm.Store. The image and the kernel are looked for in the same
// transaction: what was there when the VM was asked for may have been removed since.
func (db *DB) InsertVM(ctx context.Context, r vm.Record) error {
	return db.tx(ctx, "vm.insert", func(tx *sql.Tx) error {
		var image, kernel bool
		err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM image WHERE id = ?), EXISTS (SELECT 1 FROM kernel WHERE name = ?)`,
			r.ImageID, r.Kernel).Scan(&image, &kernel)
		switch {
		case err != nil:
			return err
		case !image:
			return api.Errorf(api.CodeNotFound, "create VM %q: image %q has been removed", r.Name, r.Image).WithHint("banger image list")
		case !kernel:
			return api.Errorf(api.CodeNotFound, "create VM %q: kernel %q has been removed", r.Name, r.Kernel).WithHint("banger kernel list")
		}
		if err := insertVM(ctx, tx, r); err != nil {
			return err
		}
		return touchImage(ctx, tx, r.ID)
	})
}

// touchImage notes that the image of the VM id is of use.
func touchImage(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `UPDATE image SET used = ? WHERE id = (SELECT image_id FROM vm WHERE id = ?)`, time.Now().UnixNano(), id)
	return err
}

// RestoreVM implements vm.Store.
func (db *DB) RestoreVM(ctx context.Context, r vm.Record) error {
	return db.tx(ctx, "vm.restore", func(tx *sql.Tx) error { return insertVM(ctx, tx, r) })
}

func insertVM(ctx context.Context, tx *sql.Tx, r vm.Record) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO vm (`+columns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		r.ID, r.Owner, r.Name, r.Image, r.ImageID, r.Kernel, r.CPUs, r.Memory, r.RootDisk, r.RootSize, r.DiskSize, r.Network, r.NAT,
		ipOut(r.IP), textOut(r.MAC), r.Init, r.Ephemeral, r.Wanted, r.Sync, r.MachineID, r.HostKey, r.Created.UnixNano(), r.LastError, uidOut(r.UID),
		r.IO.ReadBPS, r.IO.WriteBPS, r.IO.ReadIOPS, r.IO.WriteIOPS, r.VMM)
	if isUnique(err, addresses...) {
		return addressTaken("create", r)
	}
	if isUnique(err) {
		return api.Errorf(api.CodeAlreadyExists, "create VM %q: a VM of that name exists", r.Name).
			WithHint("banger vm exec %s -- COMMAND runs a command in it; banger vm delete %s removes it", r.Name, r.Name)
	}
	return err
}

// addresses are the columns that are given to VMs and of which no two have the same.
var addresses = []string{"vm.ip", "vm.mac", "vm.uid"}

func addressTaken(what string, r vm.Record) error {
	return api.Errorf(api.CodeConflict, "%s VM %q: another VM has the address %s or %s, or the user %d", what, r.Name, r.IP, r.MAC, r.UID).WithHint("try again")
}

// ipOut, textOut and uidOut make what is empty NULL, of which a UNIQUE column takes many.
func ipOut(ip netip.Addr) sql.NullString {
	return sql.NullString{String: ip.String(), Valid: ip.IsValid()}
}

func textOut(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

func uidOut(uid uint32) sql.NullInt64 { return sql.NullInt64{Int64: int64(uid), Valid: uid != 0} }

// UpdateVM implements vm.Store.
func (db *DB) UpdateVM(ctx context.Context, r vm.Record) error {
	err := db.tx(ctx, "vm.update", func(tx *sql.Tx) error { return updateVM(ctx, tx, r) })
	if isUnique(err, addresses...) {
		return addressTaken("change", r)
	}
	if isUnique(err) {
		return api.Errorf(api.CodeAlreadyExists, "rename to %q: a VM of that name exists", r.Name).WithHint("banger vm list")
	}
	return err
}

// updateVM looks for a new kernel in the same transaction, as InsertVM does.
func updateVM(ctx context.Context, tx *sql.Tx, r vm.Record) error {
	var gone bool
	err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM vm WHERE id = ?1 AND kernel <> ?2) AND NOT EXISTS (SELECT 1 FROM kernel WHERE name = ?2)`,
		r.ID, r.Kernel).Scan(&gone)
	if err != nil {
		return err
	}
	if gone {
		return api.Errorf(api.CodeNotFound, "change VM %q: kernel %q has been removed", r.Name, r.Kernel).WithHint("banger kernel list")
	}
	_, err = tx.ExecContext(ctx, `UPDATE vm SET name=?, kernel=?, cpus=?, memory=?, root_size=?, disk_size=?, nat=?, ip=?, mac=?,
		host_key=?, wanted=?, last_error=?, uid=?,
		io_read_bps=?, io_write_bps=?, io_read_iops=?, io_write_iops=?, vmm=? WHERE id=?`,
		r.Name, r.Kernel, r.CPUs, r.Memory, r.RootSize, r.DiskSize, r.NAT, ipOut(r.IP), textOut(r.MAC), r.HostKey, r.Wanted, r.LastError, uidOut(r.UID),
		r.IO.ReadBPS, r.IO.WriteBPS, r.IO.ReadIOPS, r.IO.WriteIOPS, r.VMM, r.ID)
	return err
}

// DeleteVM implements vm.Store.
func (db *DB) DeleteVM(ctx context.Context, id string) error {
	return db.tx(ctx, "vm.delete", func(tx *sql.Tx) error {
		if err := touchImage(ctx, tx, id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM vm WHERE id=?`, id)
		return err
	})
}

// VMs implements vm.Store.
func (db *DB) VMs(ctx context.Context) ([]vm.Record, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT `+columns+` FROM vm ORDER BY created`)
	return collect(rows, err, func(rows *sql.Rows, r *vm.Record) error {
		var created int64
		var ip, mac sql.NullString
		var uid sql.NullInt64
		if err := rows.Scan(&r.ID, &r.Owner, &r.Name, &r.Image, &r.ImageID, &r.Kernel, &r.CPUs, &r.Memory, &r.RootDisk, &r.RootSize, &r.DiskSize,
			&r.Network, &r.NAT, &ip, &mac, &r.Init, &r.Ephemeral, &r.Wanted, &r.Sync, &r.MachineID, &r.HostKey, &created, &r.LastError, &uid,
			&r.IO.ReadBPS, &r.IO.WriteBPS, &r.IO.ReadIOPS, &r.IO.WriteIOPS, &r.VMM); err != nil {
			return err
		}
		r.Created, r.MAC, r.UID = time.Unix(0, created), mac.String, uint32(uid.Int64)
		if !ip.Valid {
			return nil
		}
		var err error
		r.IP, err = netip.ParseAddr(ip.String)
		return err
	})
}
