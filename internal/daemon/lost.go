package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// kept are the directories of the state directory whose contents the database knows.
var kept = []string{"vms", "layers", "kernels"}

// setAside moves what only a database that is gone could tell of into a directory
// lost-<time>, of which it returns the path; empty where there was nothing. Recovery,
// to which it would belong to nobody, would remove it, users' work disks with it.
func setAside(state, database string, now time.Time) (lost string, err error) {
	if _, err := os.Lstat(database); !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, name := range kept {
		dir := filepath.Join(state, name)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return lost, fmt.Errorf("set aside what is in %s: %w", dir, err)
		}
		if len(entries) == 0 {
			continue
		}
		if lost == "" {
			lost = filepath.Join(state, "lost-"+now.UTC().Format("20060102T150405.000"))
			if err := os.Mkdir(lost, 0o700); err != nil {
				return "", fmt.Errorf("set aside what is in %s: %w", dir, err)
			}
		}
		if err := os.Rename(dir, filepath.Join(lost, name)); err != nil {
			return lost, fmt.Errorf("set aside what is in %s: %w", dir, err)
		}
		if err := os.Mkdir(dir, 0o711); err != nil {
			return lost, fmt.Errorf("set aside what is in %s: %w", dir, err)
		}
	}
	return lost, nil
}
