package resource_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"banger/internal/resource"
)

func all(string) bool  { return true }
func none(string) bool { return false }

// found returns what Check finds, as "problem name".
func (i *installation) found(t *testing.T) []string {
	t.Helper()
	findings, err := i.ledger.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, f := range findings {
		words = append(words, string(f.Problem)+" "+filepath.Base(f.Name))
	}
	slices.Sort(words)
	return words
}

// TestCheck sees each way in which ledger and host can disagree, and changes none.
func TestCheck(t *testing.T) {
	root := t.TempDir()
	before := open(t, root, "boot", true)
	before.acquire(t, "vm/1", "unfinished")
	before.kind.release = errors.New("died")
	before.kind.acquire = before.kind.release
	if _, err := before.ledger.Acquire(t.Context(), "vm/1", "dir", "vms/refused", nil); err == nil {
		t.Fatal("acquired")
	}
	rows, err := before.db.Resources(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	rows[0].State = resource.Releasing
	if err := before.db.UpdateResource(t.Context(), rows[0]); err != nil {
		t.Fatal(err)
	}

	i := open(t, root, "boot", true)
	for _, name := range []string{"fine", "missing", "foreign"} {
		i.acquire(t, "vm/1", name)
	}
	dir := func(name string) string { return filepath.Join(root, "vms", name) }
	for _, err := range []error{
		os.Remove(dir("missing")), os.Remove(dir("foreign")), os.WriteFile(dir("foreign"), []byte("not ours"), 0o600),
		os.Mkdir(dir("untracked"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"foreign foreign", "missing missing", "stuck refused", "unfinished unfinished", "untracked untracked"}
	for range 2 {
		if got := i.found(t); !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
	}
	// What can be put right is; the rest is for people, and not touched.
	if err := i.ledger.Tend(t.Context(), all); err != nil {
		t.Error(err)
	}
	if got := i.found(t); !slices.Equal(got, want[:2]) {
		t.Errorf("after it was tended: %q, want %q", got, want[:2])
	}
	if err := i.ledger.ReleaseOwner(t.Context(), "vm/1"); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(dir("foreign")); err != nil || string(text) != "not ours" {
		t.Errorf("what was not ours: %q, %v", text, err)
	}
}

// TestTend leaves owners of this run alone, and files that nobody knows to people.
func TestTend(t *testing.T) {
	for _, volatile := range []bool{true, false} {
		root := t.TempDir()
		open(t, root, "boot", volatile).acquire(t, "vm/earlier", "a")
		i := open(t, root, "boot", volatile)
		i.acquire(t, "vm/new", "b")
		if err := os.Mkdir(filepath.Join(root, "vms/c"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := i.ledger.Tend(t.Context(), none); err != nil {
			t.Error(err)
		}
		if got := i.found(t); volatile != (len(got) == 0) {
			t.Errorf("volatile: %t; found %q", volatile, got)
		}
		if !volatile {
			if err := os.Remove(filepath.Join(root, "vms/c")); err != nil {
				t.Error(err)
			}
		}
		i.check(t, "b")
	}
}

// TestBackOff counts how often the host is asked again, which refuses each time.
func TestBackOff(t *testing.T) {
	i := open(t, t.TempDir(), "boot", true)
	i.acquire(t, "vm/1", "a")
	i.kind.release = errors.New("device or resource busy")
	if err := i.ledger.ReleaseOwner(t.Context(), "vm/1"); !errors.Is(err, i.kind.release) {
		t.Fatal(err)
	}
	if err := i.ledger.Retry(t.Context()); !errors.Is(err, i.kind.release) {
		t.Errorf("the first time: %v", err)
	}
	if err := i.ledger.Retry(t.Context()); err != nil {
		t.Errorf("at once after that: %v", err)
	}
	if got := i.found(t); !slices.Equal(got, []string{"stuck a"}) {
		t.Errorf("found %q", got)
	}
	i.kind.release = nil
	if err := i.ledger.Recover(t.Context(), all); err != nil {
		t.Error(err)
	}
	i.check(t)
}
