package e2e

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"banger/internal/hosttest"
	"banger/internal/resource"
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
	var left []resource.Ref
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // a row goes just after its object
		rows, err := db.Resources(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		left = slices.DeleteFunc(rows, func(r resource.Ref) bool {
			return r.Kind == "dir" && filepath.Dir(r.Name) != "vms" // images and kernels have directories
		})
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, r := range left {
		t.Errorf("left in the ledger: %s %s of %s, %s, %s", r.Kind, r.Name, r.Owner, r.State, r.Error)
	}
}
