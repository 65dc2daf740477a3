package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
)

const mib = 1 << 20

func ref(t *testing.T, vm string, size int64) resource.Ref {
	t.Helper()
	spec, err := json.Marshal(Spec{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return resource.Ref{Kind: KindUpper, Name: "vms/" + vm + "/upper.ext4", Spec: spec}
}

// newUpper returns the kind over a state directory that has the VMs' directories.
func newUpper(t *testing.T, dir string, vms ...string) *Disks {
	t.Helper()
	for _, vm := range vms {
		if err := os.MkdirAll(filepath.Join(dir, "vms", vm), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return New(KindUpper, dir)
}

// superblock is what dumpe2fs(8) says of the file system at path, which e2fsck(8)
// finds nothing wrong with.
func superblock(t *testing.T, path string) map[string]string {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck %s: %v: %s", path, err, out)
	}
	out, err := exec.Command("dumpe2fs", "-h", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}

func presence(t *testing.T, u *Disks, r resource.Ref, want resource.Presence) {
	t.Helper()
	if got, err := u.Inspect(t.Context(), r); err != nil || got != want {
		t.Errorf("inspect %s: got %v, %v, want %v", r.Name, got, err, want)
	}
}

func TestUpperHasItsSize(t *testing.T) {
	dir := t.TempDir()
	u := newUpper(t, dir, "a")
	for _, size := range []int64{MinSize, 100 * mib, 100*mib + 5000, 64 << 30} {
		r := ref(t, "a", size)
		if err := u.Acquire(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, r.Name)
		fields := superblock(t, path)
		blocks, _ := strconv.ParseInt(fields["Block count"], 10, 64)
		unit, _ := strconv.ParseInt(fields["Block size"], 10, 64)
		if blocks*unit > size || blocks*unit <= size-4096 {
			t.Errorf("asked for %d bytes, got %d blocks of %d", size, blocks, unit)
		}
		if fields["Reserved block count"] != "0" || !strings.Contains(fields["Filesystem features"], "has_journal") {
			t.Errorf("reserved %q, features %q", fields["Reserved block count"], fields["Filesystem features"])
		}
		if taken, err := linux.Allocated(path); err != nil || taken > max(8*mib, size/100) {
			t.Errorf("%d bytes of %d are allocated, %v: not sparse", taken, size, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
}

func TestUpperIsIdempotent(t *testing.T) {
	dir := t.TempDir()
	u, r, other := newUpper(t, dir, "a", "b"), ref(t, "a", MinSize), ref(t, "b", MinSize)
	presence(t, u, r, resource.Absent)
	for range 2 {
		if err := u.Release(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := errors.Join(u.Acquire(t.Context(), r), u.Acquire(t.Context(), other)); err != nil {
			t.Fatal(err)
		}
		presence(t, u, r, resource.Ours)
	}
	refs, err := u.List(t.Context())
	names := []string{}
	for _, r := range refs {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{r.Name, other.Name}) {
		t.Errorf("list: %q, %v", names, err)
	}
	for range 2 {
		if err := u.Release(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		presence(t, u, r, resource.Absent)
	}
	presence(t, u, other, resource.Ours)
	if err := os.Mkdir(filepath.Join(dir, r.Name), 0o700); err != nil {
		t.Fatal(err)
	}
	presence(t, u, r, resource.Foreign)
	if err := u.Release(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	presence(t, u, r, resource.Foreign) // what is not ours stays
}

// TestUpperAfterCrash acquires where an earlier attempt died between its steps.
func TestUpperAfterCrash(t *testing.T) {
	for name, leave := range map[string]string{
		"half a template": "cache/upper-" + strconv.Itoa(MinSize) + ".ext4.part",
		"half a disk":     "vms/a/upper.ext4",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			u, r := newUpper(t, dir, "a"), ref(t, "a", MinSize)
			if err := os.Mkdir(filepath.Join(dir, "cache"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, leave), []byte("half of it"), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := u.Acquire(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				superblock(t, filepath.Join(dir, r.Name))
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "cache/*.part")); len(left) != 0 {
				t.Errorf("%q are left", left)
			}
		})
	}
}

func TestUpperRefuses(t *testing.T) {
	u := newUpper(t, t.TempDir(), "a")
	if err := u.Acquire(t.Context(), ref(t, "a", MinSize-1)); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("too small: got %v", err)
	}
	for _, name := range []string{"vms/../upper.ext4", "vms/a/other", "/vms/a/upper.ext4", "vms/a/b/upper.ext4", ""} {
		bad := ref(t, "a", MinSize)
		bad.Name = name
		if err := u.Acquire(t.Context(), bad); err == nil {
			t.Errorf("acquired %q", name)
		}
		if err := u.Release(t.Context(), bad); err == nil {
			t.Errorf("released %q", name)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.Acquire(cancelled, ref(t, "a", MinSize)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	t.Setenv("PATH", "")
	if _, err := os.Stat("/usr/sbin/mke2fs"); errors.Is(err, fs.ErrNotExist) {
		if err := u.Acquire(t.Context(), ref(t, "a", MinSize)); api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("without mke2fs: got %v", err)
		}
	}
}

// TestUpperOnFullDisk has less space than the file system's own structures need, in
// the two places where that can show: in the template and in the disk.
func TestUpperOnFullDisk(t *testing.T) {
	for _, size := range []string{"64k", "150k"} {
		t.Run(size, func(t *testing.T) {
			dir := t.TempDir()
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
				t.Fatalf("mount: %v: %s", err, out)
			}
			t.Cleanup(func() {
				if err := exec.Command("umount", dir).Run(); err != nil {
					t.Error("umount:", err)
				}
			})
			u, full := newUpper(t, dir, "a", "b"), 0
			for _, vm := range []string{"a", "b"} {
				r := ref(t, vm, MinSize)
				err := u.Acquire(t.Context(), r)
				if err == nil {
					continue
				}
				full++
				if api.CodeOf(err) != api.CodeNoSpace || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v", err)
				}
				presence(t, u, r, resource.Absent)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "cache/*.part")); full == 0 || len(left) != 0 {
				t.Errorf("%d of 2 found the disk full; %q are left", full, left)
			}
		})
	}
}

func TestFewTemplatesAreKept(t *testing.T) {
	dir := t.TempDir()
	u := newUpper(t, dir, "a")
	for i := range int64(keptTemplates + 3) {
		if err := u.Acquire(t.Context(), ref(t, "a", MinSize+i*mib)); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "cache"))
	if err != nil || len(left) != keptTemplates {
		t.Errorf("%d are left, %v", len(left), err)
	}
	if last := fmt.Sprintf("upper-%d.ext4", MinSize+(keptTemplates+2)*mib); !slices.ContainsFunc(left, func(e fs.DirEntry) bool { return e.Name() == last }) {
		t.Errorf("the newest is gone: %v", left)
	}
}

// TestGrow grows a disk and does not shrink it; each name is a new one.
func TestGrow(t *testing.T) {
	d := New(KindWork, t.TempDir())
	name := d.Name("vms/a")
	if name == d.Name("vms/a") {
		t.Errorf("the name %s twice", name)
	}
	file, err := d.Path(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(Spec{Size: MinSize})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Acquire(t.Context(), resource.Ref{Kind: KindWork, Name: name, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		size, want int64
		code       api.Code
	}{{2 * MinSize, 2 * MinSize, ""}, {2 * MinSize, 2 * MinSize, ""}, {MinSize, 2 * MinSize, api.CodeInvalid}} {
		if _, err := d.Grow(name, step.size); api.CodeOf(err) != step.code {
			t.Errorf("grow to %d: %v", step.size, err)
		}
		if info, err := os.Stat(file); err != nil || info.Size() != step.want {
			t.Errorf("grow to %d: the file: %v, %v", step.size, info, err)
		}
	}
}
