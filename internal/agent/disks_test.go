package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAwaitSizes has a kernel see late that a disk has grown.
func TestAwaitSizes(t *testing.T) {
	dir := t.TempDir()
	size := filepath.Join(dir, "vdb", "size")
	if err := os.Mkdir(filepath.Dir(size), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(sectors string) {
		if err := os.WriteFile(size+".new", []byte(sectors+"\n"), 0o644); err != nil {
			t.Error(err)
		}
		if err := os.Rename(size+".new", size); err != nil {
			t.Error(err)
		}
	}
	write("8")
	began := time.Now()
	time.AfterFunc(50*time.Millisecond, func() { write("16") })
	if err := awaitSizes(dir, map[string]int64{"vdb": 8192}); err != nil || time.Since(began) < 50*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if err := awaitSizes(dir, map[string]int64{"vdc": 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a disk that is not there: %v", err)
	}
	write("many")
	if err := awaitSizes(dir, map[string]int64{"vdb": 1}); err == nil {
		t.Error("a size that is no number was taken")
	}
}
