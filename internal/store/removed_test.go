package store_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/store"
	"banger/internal/vm"
)

// TestVMOfRemovedParts removes an image or a kernel while a VM of it is made: only
// one of the two may succeed.
func TestVMOfRemovedParts(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	img := image.Image{ID: "sha256:1", Name: "img", Created: time.Now(), Layers: []image.Layer{{Digest: "sha256:2", Dir: "layers/2", Size: 1}}}
	krn := kernel.Kernel{Name: "krn", Release: "1", Dir: "kernels/1", Created: time.Now()}
	rec := vm.Record{ID: "0123", Name: "api", Image: img.Name, ImageID: img.ID, Kernel: krn.Name, RootDisk: api.RootDiskOverlay, VMM: api.VMMQEMU, Wanted: vm.WantStopped, Created: time.Now()}

	if err := db.InsertKernel(t.Context(), krn); err != nil {
		t.Fatal(err)
	}
	if err := db.InsertVM(t.Context(), rec); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("without the image: got %v", err)
	}
	for range 20 {
		if err := db.InsertImage(t.Context(), img, false); err != nil {
			t.Fatal(err)
		}
		var made, removed error
		var both sync.WaitGroup
		both.Go(func() { made = db.InsertVM(t.Context(), rec) })
		both.Go(func() { _, removed = db.DeleteImage(t.Context(), img.Owner, img.Name, nil) })
		both.Wait()
		switch {
		case made == nil && api.CodeOf(removed) == api.CodeConflict:
			err := db.DeleteVM(t.Context(), rec.ID)
			if _, derr := db.DeleteImage(t.Context(), img.Owner, img.Name, nil); err != nil || derr != nil {
				t.Fatal(err, derr)
			}
		case removed == nil && api.CodeOf(made) == api.CodeNotFound:
		default:
			t.Fatalf("made: %v; removed: %v", made, removed)
		}
	}
	if err := db.InsertImage(t.Context(), img, false); err != nil {
		t.Fatal(err)
	}
	if err := db.DeleteKernel(t.Context(), krn.Name); err != nil {
		t.Fatal(err)
	}
	if err := db.InsertVM(t.Context(), rec); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("without the kernel: got %v", err)
	}
}
