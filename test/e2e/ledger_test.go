package e2e

import (
	"path/filepath"
	"testing"

	"banger/internal/hosttest"
	"banger/internal/store"
)

// nothingLeft fails t for whatever VMs have left, on the host or in the ledger,
// once all of them are deleted.
func nothingLeft(t *testing.T, h *hosttest.Host) {
	t.Helper()
	h.CheckNothingLeft(t)
	db, err := store.OpenReadOnly(t.Context(), filepath.Join(h.Paths.State, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Resources(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Kind != "dir" || filepath.Dir(r.Name) == "vms" { // images and kernels have directories
			t.Errorf("left in the ledger: %s %s of %s, %s, %s", r.Kind, r.Name, r.Owner, r.State, r.Error)
		}
	}
}
