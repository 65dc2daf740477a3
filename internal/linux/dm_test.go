package linux

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needDM skips a test where the kernel has no device-mapper. Where the environment says
// that there is one, as in the VM in which the tests run that a host lacks the kernel
// for, that is an error.
func needDM(t *testing.T) {
	t.Helper()
	err := DeviceMapper{}.Supports("linear", "zero", "snapshot")
	switch {
	case err == nil:
	case os.Getenv("BANGER_TEST_DM") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// TestDeviceMapper lays a snapshot over a read-only base that is followed by zeros, and
// has it grow while it is open.
func TestDeviceMapper(t *testing.T) {
	needDM(t)
	const sectors = 1 << 20 / SectorSize // of a MiB
	var d DeviceMapper
	base, cow, origin, snapshot := testName("base"), testName("cow"), testName("origin"), testName("snapshot")
	newLoop(t, base, 1, true)
	file := newLoop(t, cow, 8, false)
	if err := os.Truncate(file, 0); err != nil { // the store is new: it begins with zeros
		t.Fatal(err)
	}
	if err := os.Truncate(file, 8<<20); err != nil {
		t.Fatal(err)
	}
	held := map[string]string{}
	for _, name := range []string{base, cow} {
		f, err := HoldLoop(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		held[name] = f.Name()
	}
	originTable := func(mib int64) []DMTarget {
		return []DMTarget{{sectors, "linear", held[base] + " 0"}, {(mib - 1) * sectors, "zero", ""}}
	}
	build := func(name string, readOnly bool, table []DMTarget) string {
		t.Helper()
		if err := d.Make(name, "BANGER-"+name, readOnly, table); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Remove(name); err != nil {
				t.Error(err)
			}
			if _, err := d.Find(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("removed: %v", err)
			}
		})
		dev, err := d.Find(name)
		if err != nil || dev.UUID != "BANGER-"+name {
			t.Fatalf("find %s: %+v, %v", name, dev, err)
		}
		return dev.Path
	}
	originPath := build(origin, true, originTable(4))
	snapshotTable := func(mib int64) []DMTarget {
		return []DMTarget{{mib * sectors, "snapshot", fmt.Sprintf("%s %s P 32", originPath, held[cow])}}
	}
	path := build(snapshot, false, snapshotTable(4))
	names, err := d.Names("banger-test-")
	if err != nil || !slices.Contains(names, origin) || !slices.Contains(names, snapshot) {
		t.Errorf("list: %q, %v", names, err)
	}
	if names, err := d.Names("of nobody"); err != nil || len(names) > 0 {
		t.Errorf("list of what there is not: %q, %v", names, err)
	}
	if err := d.Make(snapshot, "other", false, snapshotTable(4)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the same name again: %v", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := d.Remove(snapshot); !errors.Is(err, unix.EBUSY) {
		t.Errorf("remove what is open: %v", err)
	}
	check := func(at int64, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, at); err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("at %d: %q, %v, want %q", at, got, err, want)
		}
	}
	check(0, base)
	check(1<<20, "\x00\x00")
	for _, at := range []int64{3, 3 << 20} {
		if _, err := f.WriteAt([]byte("written"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(file, 12<<20), GrowLoop(cow)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Reload(origin, true, originTable(6)), d.Reload(snapshot, false, snapshotTable(6))); err != nil {
		t.Fatal(err)
	}
	if size, err := DiskSize(path); err != nil || size != 6<<20 {
		t.Errorf("grown: %d bytes, %v", size, err)
	}
	check(0, base[:3]+"written")
	check(3<<20, "written")
	if _, err := f.WriteAt([]byte("beyond"), 5<<20); err != nil {
		t.Error(err)
	}
	check(5<<20, "beyond")
	status, err := d.Status(snapshot)
	if err != nil || !strings.Contains(status, "/") {
		t.Errorf("status %q, %v, want so many sectors of so many", status, err)
	}
	if kept, err := os.ReadFile(held[base]); err != nil || !bytes.HasPrefix(kept, []byte(base)) {
		t.Errorf("the base has changed: %.40q, %v", kept, err)
	}
	if err := d.Reload(snapshot, false, []DMTarget{{sectors, "snapshot", "nonsense"}}); err == nil {
		t.Error("nonsense is loaded")
	}
	check(3<<20, "written")
}

func TestDeviceMapperMissing(t *testing.T) {
	var d DeviceMapper
	err := d.Supports("linear", "no-such-target")
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a target that there is not: %v", err)
	}
}
