package resource_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/resource"
	"banger/internal/store"
)

// stubborn is a directory Kind whose steps can be made to go wrong.
type stubborn struct {
	*resource.Dir
	acquire, release error
	released         func() // nil for nothing
}

func (s *stubborn) Acquire(ctx context.Context, r resource.Ref) error {
	return errors.Join(s.Dir.Acquire(ctx, r), s.acquire)
}

func (s *stubborn) Release(ctx context.Context, r resource.Ref) error {
	if s.release != nil {
		return s.release
	}
	err := s.Dir.Release(ctx, r)
	if s.released != nil {
		s.released()
	}
	return err
}

// installation is a ledger on a real database, over real directories.
type installation struct {
	root   string
	db     *store.DB
	kind   *stubborn
	ledger *resource.Ledger
}

func open(t *testing.T, root, boot string, volatile bool) *installation {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(root, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	kind := &stubborn{Dir: resource.NewDir("dir", root, volatile, "vms")}
	return &installation{root, db, kind, resource.New(db, boot, slog.New(slog.DiscardHandler), kind)}
}

func (i *installation) acquire(t *testing.T, owner, name string) {
	t.Helper()
	if _, err := i.ledger.Acquire(t.Context(), owner, "dir", "vms/"+name, nil); err != nil {
		t.Fatal(err)
	}
}

// check compares the rows and the objects with what is wanted.
func (i *installation) check(t *testing.T, want ...string) {
	t.Helper()
	refs, err := i.db.Resources(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(filepath.Join(i.root, "vms"))
	if len(refs) != len(want) || len(entries) != len(want) {
		t.Fatalf("rows %v and directories %v, want %q", refs, entries, want)
	}
	for n, name := range want {
		if refs[n].Name != "vms/"+name || entries[n].Name() != name {
			t.Errorf("row %v and directory %v, want %q", refs[n], entries[n], name)
		}
	}
}

func TestAcquireRelease(t *testing.T) {
	i := open(t, t.TempDir(), "boot", false)
	i.acquire(t, "vm/1", "a")
	i.acquire(t, "vm/1", "b")
	i.acquire(t, "vm/2", "c")
	i.check(t, "a", "b", "c")
	if _, err := i.ledger.Acquire(t.Context(), "vm/3", "dir", "vms/a", nil); err == nil {
		t.Error("a name was used twice")
	}
	for range 2 {
		if err := i.ledger.ReleaseOwner(t.Context(), "vm/1"); err != nil {
			t.Fatal(err)
		}
		i.check(t, "c")
	}
}

// lagging is a kind whose objects are released apart, each when gate is closed.
type lagging struct {
	*resource.Dir
	gate chan struct{}
}

func (lagging) Apart() bool { return true }

func (l lagging) Release(ctx context.Context, r resource.Ref) error {
	<-l.gate
	return l.Dir.Release(ctx, r)
}

// TestReleaseApart has an object go only when those of its owner and the next one, beside
// which it is released, are gone: the next one's stay while an owner keeps something.
func TestReleaseApart(t *testing.T) {
	i := open(t, t.TempDir(), "boot", false)
	slow := lagging{resource.NewDir("slow", i.root, false, "slow"), make(chan struct{})}
	i.ledger = resource.New(i.db, "boot", slog.New(slog.DiscardHandler), i.kind, slow)
	i.acquire(t, "vm/1", "a")
	i.acquire(t, "vm/2", "b")
	if _, err := i.ledger.Acquire(t.Context(), "vm/1", "slow", "slow/s", nil); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	i.kind.released = func() {
		if entries, err := os.ReadDir(filepath.Join(i.root, "vms")); err == nil && len(entries) == 0 {
			close(slow.gate)
		}
	}
	go func() { ended <- i.ledger.ReleaseOwner(t.Context(), "vm/1", "vm/2") }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("what is released apart holds the others up")
	}
	i.check(t)

	i.kind.released, i.kind.release = nil, errors.New("busy")
	i.acquire(t, "vm/1", "a")
	i.acquire(t, "vm/2", "b")
	if err := i.ledger.ReleaseOwner(t.Context(), "vm/1", "vm/2"); !errors.Is(err, i.kind.release) {
		t.Errorf("got %v", err)
	}
	refs, err := i.db.Resources(t.Context(), "vm/2")
	if err != nil || len(refs) != 1 || refs[0].State != resource.Held {
		t.Errorf("the next owner has %v, %v", refs, err)
	}
}

func TestFailedAcquireLeavesNothing(t *testing.T) {
	i := open(t, t.TempDir(), "boot", false)
	i.kind.acquire = errors.New("no")
	if _, err := i.ledger.Acquire(t.Context(), "vm/1", "dir", "vms/a", nil); !errors.Is(err, i.kind.acquire) {
		t.Errorf("got %v", err)
	}
	i.check(t)
}

// TestRecover leaves behind what a crash would, and starts again.
func TestRecover(t *testing.T) {
	root := t.TempDir()
	before := open(t, root, "boot", false)
	before.acquire(t, "vm/alive", "a")
	before.acquire(t, "vm/dead", "b")
	before.kind.acquire, before.kind.release = errors.New("died"), errors.New("died")
	if _, err := before.ledger.Acquire(t.Context(), "vm/alive", "dir", "vms/c", nil); err == nil {
		t.Fatal("acquired")
	}
	before.check(t, "a", "b", "c")
	if err := os.Mkdir(filepath.Join(root, "vms/untracked"), 0o700); err != nil {
		t.Fatal(err)
	}
	after := open(t, root, "boot", false)
	for range 2 {
		if err := after.ledger.Recover(t.Context(), func(owner string) bool { return owner == "vm/alive" }); err != nil {
			t.Fatal(err)
		}
		after.check(t, "a")
	}
}

func TestRecoverAfterReboot(t *testing.T) {
	root := t.TempDir()
	open(t, root, "boot", true).acquire(t, "vm/1", "a")
	after := open(t, root, "another boot", true)
	if err := after.ledger.Recover(t.Context(), func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	after.check(t)
}

// TestRetry has the host let go of things some time after they were to be released.
func TestRetry(t *testing.T) {
	for _, volatile := range []bool{true, false} {
		i := open(t, t.TempDir(), "boot", volatile)
		i.acquire(t, "vm/1", "a")
		i.acquire(t, "vm/1", "b")
		i.acquire(t, "vm/2", "c")
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // no back-off
		i.kind.release = errors.New("device or resource busy")
		refs, err := i.ledger.Held(t.Context(), "vm/1")
		if err != nil {
			t.Fatal(err)
		}
		if err := i.ledger.Release(ctx, refs[0]); !errors.Is(err, i.kind.release) {
			t.Fatalf("released: %v", err)
		}
		i.check(t, "a", "b", "c")
		i.kind.release = nil
		if err := i.ledger.Retry(t.Context()); err != nil {
			t.Error(err)
		}
		if volatile {
			i.check(t, "b", "c")
			continue
		}
		i.check(t, "a", "b", "c") // its name may be used again: that is for its owner
		if err := i.ledger.Finish(t.Context(), "vm/1"); err != nil {
			t.Error(err)
		}
		i.check(t, "b", "c")
		i.acquire(t, "vm/1", "a")
	}
}
