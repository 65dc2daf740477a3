package store

import (
	"context"
	"database/sql"
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What is given back on a full disk has to be written down there. So the files of the
// database have some room of their own: pages that are free, and a log that is longer
// than it has to be and is written from its beginning again when it cannot grow. See
// https://sqlite.org/wal.html, "Checkpointing".

// reserved is how many bytes of the database, and of its log, are kept free.
const reserved = 256 << 10

// reserve makes that room, where the disk has it.
func reserve(ctx context.Context, db *sql.DB) error {
	const name = "reserve" // a row that is there for a moment
	_, err := db.ExecContext(ctx, `INSERT OR REPLACE INTO setting (name, value) VALUES (?, hex(zeroblob(?)))`, name, reserved/2)
	if err == nil {
		_, err = db.ExecContext(ctx, `DELETE FROM setting WHERE name = ?`, name)
	}
	if err == nil {
		err = restart(ctx, db)
	}
	if isFull(err) {
		return nil
	}
	return err
}

// restart has the log written from its beginning again.
func restart(ctx context.Context, db *sql.DB) error {
	var busy, frames, written int
	if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(RESTART)`).Scan(&busy, &frames, &written); err != nil {
		return err
	}
	if busy != 0 { // somebody reads, who has a second connection
		return errors.New("the log is in use")
	}
	return nil
}

// isFull says that err is the want of space for the database or its journal.
func isFull(err error) bool {
	se, ok := errors.AsType[*sqlite.Error](err)
	return ok && (se.Code()&0xff == sqlite3.SQLITE_FULL || se.Code() == sqlite3.SQLITE_IOERR_SHMSIZE) // the latter: no room for the -shm file
}
