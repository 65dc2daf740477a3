package linux_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/linux"
)

// TestWatchFile watches a file while something writes to it byte by byte: what comes last
// is seen, and the watcher has had time to rest.
func TestWatchFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 20_000
	var looks atomic.Int64
	began := time.Now()
	seen := make(chan error, 1)
	go func() {
		seen <- linux.WatchFile(t.Context(), path, func() bool {
			looks.Add(1)
			info, err := os.Stat(path)
			return err != nil || info.Size() == size
		})
	}()
	for range size {
		if _, err := f.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-seen; err != nil {
		t.Error(err)
	}
	if n, most := looks.Load(), int64(time.Since(began)/(50*time.Millisecond))+2; n > most {
		t.Errorf("it was looked at %d times, want at most %d", n, most)
	}

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := linux.WatchFile(ctx, path, func() bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("when it is given up: %v", err)
	}
	if err := linux.WatchFile(t.Context(), path+".absent", func() bool { return false }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
