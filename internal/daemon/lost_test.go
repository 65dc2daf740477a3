package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSetAside loses the database, or not, of a state directory with a work disk.
func TestSetAside(t *testing.T) {
	now := time.Unix(1e9, 0)
	for name, tc := range map[string]struct{ database, disk, lost bool }{
		"new":           {false, false, false},
		"all is there":  {true, true, false},
		"database lost": {false, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			database, disk := filepath.Join(state, "banger.db"), filepath.Join(state, "vms", "x", "work-1.ext4")
			for path, there := range map[string]bool{database: tc.database, disk: tc.disk} {
				if !there {
					continue
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("work"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			lost, err := setAside(state, database, now)
			if err != nil || (lost != "") != tc.lost {
				t.Fatalf("set aside in %q, %v", lost, err)
			}
			if !tc.lost {
				if _, err := os.Stat(disk); (err == nil) != tc.disk {
					t.Errorf("the disk: %v", err)
				}
				return
			}
			if text, err := os.ReadFile(filepath.Join(lost, "vms", "x", "work-1.ext4")); err != nil || string(text) != "work" {
				t.Errorf("the disk: %q, %v", text, err)
			}
			if entries, err := os.ReadDir(filepath.Join(state, "vms")); err != nil || len(entries) != 0 {
				t.Errorf("left for recovery: %v, %v", entries, err)
			}
			if again, err := setAside(state, database, now); again != "" || err != nil {
				t.Errorf("the second time: %q, %v", again, err)
			}
		})
	}
}
