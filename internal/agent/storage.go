package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"

	"banger/internal/linux"
)

// storageDir is the directory of the upper disk, beside the overlay's own, with
// what engines keep.
const storageDir = "containers"

// engines are the directories below /var/lib in which Docker, containerd and podman
// keep images and containers. They lay overlays of their own in them, for which the
// kernel refuses an upper directory that lies on an overlay (overlayfs.rst).
var engines = []string{"docker", "containerd", "containers"}

// bindStorage puts a plain directory of the upper disk in the place of each of the
// engines', seeded with what the image has there. It does so too where the image
// lacks the engine, which may be installed later, but not where it lacks /var/lib.
func bindStorage() error {
	lib, err := os.Stat(newRoot + "/var/lib")
	if err != nil || !lib.IsDir() {
		return nil
	}
	kept := filepath.Join(newRoot+upperMount, storageDir)
	if err := os.MkdirAll(kept, 0o700); err != nil {
		return err
	}
	for _, engine := range engines {
		place, err := directory(newRoot, "var/lib/"+engine)
		if err != nil {
			log.Printf("storage of %s: %v", engine, err) // the image's own affair: it still runs
			continue
		}
		dir := filepath.Join(kept, engine)
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			if err := seed(dir, dir+".seed", place); err != nil {
				return fmt.Errorf("seed /var/lib/%s: %w", engine, err)
			}
		}
		if err := linux.Bind(dir, place); err != nil {
			return err
		}
	}
	return nil
}
