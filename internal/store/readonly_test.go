package store

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"banger/api"
)

// A read-only open sees what a daemon that has the database open writes, and
// changes nothing: neither the rows, nor the schema of an older version.
func TestOpenReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PutSetting(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	ro, err := OpenReadOnly(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if v, found, err := ro.Setting(t.Context(), "k"); v != "v" || !found || err != nil {
		t.Errorf("got %q, %v, %v", v, found, err)
	}
	if err := ro.PutSetting(t.Context(), "k", "w"); err == nil {
		t.Error("it wrote")
	}
	if err := ro.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenReadOnlyRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	if _, err := OpenReadOnly(t.Context(), path); err == nil {
		t.Error("it opened a database that is not there")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it made one: %v", err)
	}
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.sql.Exec("DELETE FROM goose_db_version WHERE version_id = ?", newest()); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(t.Context(), path); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("an older schema: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("it changed the database (%v)", err)
	}
	var count int
	raw, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.QueryRow("SELECT count(*) FROM goose_db_version WHERE version_id = ?", newest()).Scan(&count); err != nil || count != 0 {
		t.Errorf("it migrated: %d, %v", count, err)
	}
}
