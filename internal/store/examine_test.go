package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

func TestExamine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Examine(t.Context(), path) // also while a daemon has it open
	if err != nil || len(c.Damage) != 0 || c.Schema != newest() || c.Knows != newest() {
		t.Errorf("a new one: %+v, %v", c, err)
	}
	for _, statement := range []string{
		"DELETE FROM goose_db_version WHERE version_id = 2",
		"PRAGMA foreign_keys = 0",
		"INSERT INTO image_layer (owner, name, position, digest) VALUES (0, 'none', 0, 'sha256:none')",
	} {
		if _, err := db.sql.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = Examine(t.Context(), path); err != nil || len(c.Damage) != 2 || !strings.Contains(c.Damage[0], "table image_layer") {
		t.Errorf("rows that name what is not there: %+v, %v", c, err)
	}
}

// TestExamineDamage damages a database in several ways; it stays as it is.
func TestExamineDamage(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "banger.db")
	db, err := Open(t.Context(), whole)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	garbled := append([]byte(nil), content...)
	copy(garbled[4096:], strings.Repeat("garbage ", 512)) // the second page; those in the middle are free
	for name, damaged := range map[string][]byte{
		"empty":     {},
		"no header": append(make([]byte, 100), content[100:]...),
		"text":      []byte(strings.Repeat("not a database\n", 1000)),
		"cut":       content[:len(content)/2],
		"garbled":   garbled,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "banger.db")
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Examine(t.Context(), path)
			if err == nil && len(c.Damage) == 0 {
				t.Errorf("it is taken for whole: %+v", c)
			}
			if err != nil && api.AsError(err).Hint == "" && name != "empty" {
				t.Errorf("no next step: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(damaged) {
				t.Errorf("it was changed: %v", err)
			}
		})
	}
	if _, err := Examine(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("one that is not there is whole")
	}
}
