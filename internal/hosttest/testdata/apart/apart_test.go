// Package apart is run by the test of hosttest.MainApart.
package apart

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/hosttest"
	"banger/internal/linux"
)

func TestMain(m *testing.M) { hosttest.MainApart(m) }

// meet leaves the name of its network for the other test and waits for the other's.
func meet(t *testing.T, mine, others string) {
	dir := os.Getenv("APART_DIR")
	id, err := linux.NetNSID()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, mine+".part"), []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, mine+".part"), filepath.Join(dir, mine)); err != nil {
		t.Fatal(err)
	}
	hosttest.Eventually(t, time.Minute, "the other test runs at the same time", func() bool {
		other, err := os.ReadFile(filepath.Join(dir, others))
		if err == nil && string(other) == id {
			t.Fatalf("both tests have the network %s", id)
		}
		return err == nil
	})
}

func TestOne(t *testing.T) { meet(t, "one", "two") }
func TestTwo(t *testing.T) { meet(t, "two", "one") }

func TestThird(t *testing.T) {
	switch os.Getenv("APART_THIRD") {
	case "fail":
		t.Error("on purpose")
	case "hang":
		time.Sleep(time.Hour)
	default:
		t.Skip("as asked")
	}
}
