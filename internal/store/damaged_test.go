package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	db := filled(t, path)
	for i := range 100 {
		must(t, db.InsertImage(t.Context(), testImage(fmt.Sprint("more", i)), false))
	}
	must(t, db.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	hole := bytes.Clone(whole)
	clear(hole[8192 : len(hole)-8192])
	for name, content := range map[string][]byte{
		"garbage":           bytes.Repeat([]byte("no database "), 100),
		"header only":       whole[:100],
		"cut in the header": whole[:50],
		"half":              whole[:len(whole)/2],
		"a page short":      whole[:len(whole)-4096],
		"a hole":            hole,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "banger.db")
			must(t, os.WriteFile(path, content, 0o600))
			_, err := Open(t.Context(), path)
			expect(t, err, api.CodeInternal, "open database "+path+": read database: it is damaged: ", "start bangerd again")
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v is not known as damage", err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
				t.Errorf("the damaged file was changed: %v", err)
			}
		})
	}
	t.Run("a directory", func(t *testing.T) {
		_, err := Open(t.Context(), t.TempDir())
		expect(t, err, api.CodeInternal, "open database ", "")
	})
	// SQLite finds nothing wrong with these.
	for name, statement := range map[string]string{
		"a table is missing":  `DROP TABLE image_layer`,
		"a column is missing": `ALTER TABLE vm DROP COLUMN machine_id`,
		"a row cannot be":     `UPDATE vm SET ip = 'nowhere'`,
		"somebody else's":     `DROP TABLE goose_db_version`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "banger.db")
			must(t, filled(t, path).Close())
			raw(t, path, statement)
			_, err := Open(t.Context(), path)
			expect(t, err, api.CodeInternal, "open database "+path+": read database: it is damaged: ", "start bangerd again")
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v is not known as damage", err)
			}
		})
	}
}

// TestSetAside moves a database away, with its journal, and the journal alone.
func TestSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	db := filled(t, path)
	if Torn(path) {
		t.Error("a whole one is torn")
	}
	aside, err := SetAside(path) // while it is open: the journal is not empty
	must(t, err)
	must(t, db.Close())
	if left, err := filepath.Glob(path + "*"); err != nil || len(left) == 0 || slices.ContainsFunc(left, func(f string) bool { return !strings.HasPrefix(f, aside) }) {
		t.Errorf("left: %v, %v; set aside as %s", left, err, aside)
	}
	if vms, err := open(t, aside).VMs(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("in the one that was set aside: %v, %v", vms, err)
	}
	if again, err := SetAside(path); err != nil || again != "" {
		t.Errorf("nothing was set aside as %q, %v", again, err)
	}
	for _, empty := range []bool{false, true} {
		must(t, os.WriteFile(path+"-wal", []byte("the last that was written"), 0o600))
		if empty {
			must(t, os.WriteFile(path, nil, 0o600))
		}
		if !Torn(path) {
			t.Error("the journal belongs to nothing, and it is not torn")
		}
		aside, err := SetAside(path)
		must(t, err)
		if empty {
			aside += "-wal"
		}
		if text, err := os.ReadFile(aside); err != nil || string(text) != "the last that was written" {
			t.Errorf("set aside: %q, %v", text, err)
		}
	}
}

// TestLocked has another process keep the database to itself: it is as good as before.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	must(t, filled(t, path).Close())
	other, err := sql.Open("sqlite", "file:"+path+"?_pragma=locking_mode(EXCLUSIVE)")
	must(t, err)
	defer other.Close()
	other.SetMaxOpenConns(1)
	_, err = other.Exec(`UPDATE vm SET name = 'mine'`)
	must(t, err)
	_, err = Open(t.Context(), path)
	expect(t, err, api.CodeUnavailable, "open database "+path+": use database: another process has locked it", "fuser")
	if errors.Is(err, ErrDamaged) {
		t.Error("it is taken for damaged")
	}
	must(t, other.Close())
	if vms, err := open(t, path).VMs(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("afterwards: %v, %v", vms, err)
	}
}
