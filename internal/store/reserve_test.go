package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"banger/internal/hosttest"
	"banger/internal/resource"
	"banger/internal/store"
)

// TestFullDisk keeps the ledger on a disk without a free byte: what is there is given
// back, row by row, and what is new is written down, as far as it is little.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	hosttest.MountTmpfs(t, dir, "8M")
	db, err := store.Open(t.Context(), filepath.Join(dir, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	for range 5 {
		var refs []resource.Ref
		for range 100 {
			r := resource.Ref{ID: resource.RandomName(8), Kind: "dir", Name: resource.RandomName(8), Spec: []byte("{}"), State: resource.Acquiring}
			if _, err := db.InsertResource(t.Context(), r); err != nil {
				t.Fatalf("row %d: %v", len(refs), err)
			}
			refs = append(refs, r)
		}
		for _, r := range refs {
			r.State = resource.Releasing
			if err := errors.Join(db.UpdateResource(t.Context(), r), db.DeleteResource(t.Context(), r.ID)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
