package linux

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newLoop attaches a file of so many MiB, whose first bytes are its name, until the end
// of the test.
func newLoop(t *testing.T, name string, mib int64, readOnly bool) (file string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	file = filepath.Join(t.TempDir(), name)
	if err := errors.Join(os.WriteFile(file, []byte(name), 0o600), os.Truncate(file, mib<<20)); err != nil {
		t.Fatal(err)
	}
	if err := (Loop{Name: name, File: file, ReadOnly: readOnly, DirectIO: !readOnly}).Attach(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := DetachLoop(name); err != nil {
			t.Error(err)
		}
		awaitNoLoop(t, name)
	})
	return file
}

// testName is a name that nothing has ever had.
func testName(what string) string { return "banger-test-" + what + "-" + rand.Text() }

// awaitNoLoop waits until there is no loop device called name: where there is udev, it
// looks into a device that has changed, and may be the last to close it.
func awaitNoLoop(t *testing.T, name string) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for _, err := FindLoop(name); !errors.Is(err, fs.ErrNotExist); _, err = FindLoop(name) {
		if time.Now().After(end) {
			t.Fatalf("the loop device %s is left: %v", name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestLoop(t *testing.T) {
	name := testName("loop")
	if _, err := FindLoop(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("found before it is made: %v", err)
	}
	file := newLoop(t, name, 1, false)
	names, err := LoopNames(name[:20])
	if err != nil || !slices.Contains(names, name) {
		t.Errorf("list: %q, %v", names, err)
	}
	if err := os.Truncate(file, 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := GrowLoop(name); err != nil {
		t.Fatal(err)
	}
	held, err := HoldLoop(name)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := DiskSize(held.Name()); err != nil || size != 3<<20 {
		t.Errorf("its size is %d, %v", size, err)
	}
	head := make([]byte, len(name))
	if _, err := held.ReadAt(head, 0); err != nil || !bytes.Equal(head, []byte(name)) {
		t.Errorf("it holds %q, %v", head, err)
	}
	if _, err := FindLoop(name); err != nil { // which opens and closes it
		t.Errorf("held: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	awaitNoLoop(t, name)
	if err := DetachLoop(name); err != nil {
		t.Errorf("detach what is gone: %v", err)
	}
}

func TestLoopReadOnly(t *testing.T) {
	name := testName("ro")
	newLoop(t, name, 1, true)
	held, err := HoldLoop(name)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	f, err := os.OpenFile(held.Name(), os.O_RDWR, 0)
	if err == nil {
		_, err = f.Write([]byte("x"))
		f.Close()
	}
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		t.Errorf("write to a read-only loop device: %v", err)
	}
}
