package disk_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/store"
)

const (
	mib   = 1 << 20
	chunk = 16 << 10
	owner = "vm/a/run"
)

// lab is a state directory with a base and a copy-on-write file.
type lab struct {
	t            *testing.T
	dir          string
	installation string
	mapper       disk.Mapper
	ledger       *resource.Ledger
	db           *store.DB
	snapshots    *disk.Snapshots
	v            disk.Snapshot
	base         []byte
}

func newLab(t *testing.T, mapper disk.Mapper, size, cow int64) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	l := &lab{t: t, dir: t.TempDir(), installation: strings.ToLower(rand.Text()[:8]), mapper: mapper, base: make([]byte, 2*mib)}
	l.v = disk.Snapshot{Base: "base.ext4", Cow: "cow.img", Size: size}
	rand.Read(l.base)
	if err := errors.Join(os.WriteFile(filepath.Join(l.dir, l.v.Base), l.base, 0o440), os.WriteFile(l.cow(), nil, 0o600), os.Truncate(l.cow(), cow)); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.db, err = store.Open(t.Context(), filepath.Join(l.dir, "banger.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.db.Close() })
	l.boot()
	t.Cleanup(func() {
		if err := l.ledger.ReleaseOwner(context.Background(), owner); err != nil {
			t.Error(err)
		}
		l.empty()
	})
	return l
}

func (l *lab) cow() string { return filepath.Join(l.dir, l.v.Cow) }

// boot is a new run of the daemon.
func (l *lab) boot() {
	l.ledger = resource.New(l.db, "this boot", slog.New(slog.DiscardHandler), disk.SnapshotKinds(l.installation, l.dir, l.mapper)...)
	l.snapshots = disk.NewSnapshots(l.ledger, l.installation, l.dir, l.mapper)
}

// empty looks for what is left.
func (l *lab) empty() {
	l.t.Helper()
	for _, k := range disk.SnapshotKinds(l.installation, l.dir, l.mapper) {
		if refs, err := k.List(context.Background()); err != nil || len(refs) > 0 {
			l.t.Errorf("left: %v, %v", refs, err)
		}
	}
	if refs, err := l.db.Resources(context.Background(), ""); err != nil || len(refs) > 0 {
		l.t.Errorf("in the ledger: %v, %v", refs, err)
	}
}

func (l *lab) acquire() (path string) {
	l.t.Helper()
	if err := l.snapshots.Acquire(l.t.Context(), owner, l.v); err != nil {
		l.t.Fatal(err)
	}
	path, err := l.snapshots.Path(l.t.Context(), owner)
	if err != nil {
		l.t.Fatal(err)
	}
	return path
}

// names are those of the devices, by kind.
func (l *lab) names() map[string]string {
	l.t.Helper()
	names := map[string]string{}
	refs, err := l.db.Resources(l.t.Context(), owner)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, r := range refs {
		names[r.Kind] = r.Name
	}
	return names
}

func TestSnapshot(t *testing.T) {
	m := hosttest.NewMapper(t.TempDir())
	l := newLab(t, m, 10*mib, disk.CowSize(10*mib))
	path := l.acquire()
	if size, err := linux.DiskSize(path); err != nil || size != 10*mib {
		t.Errorf("its size is %d, %v", size, err)
	}
	names := l.names()
	base, err := linux.FindLoop(names[disk.KindLoopBase])
	if err != nil {
		t.Fatal(err)
	}
	cow, err := linux.FindLoop(names[disk.KindLoopCow])
	if err != nil {
		t.Fatal(err)
	}
	origin, err := m.Find(names[disk.KindOrigin])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.Table(names[disk.KindOrigin]), "4096 linear "+base+" 0\n16384 zero"; got != want {
		t.Errorf("origin:\n%s\nwant:\n%s", got, want)
	}
	if got, want := m.Table(names[disk.KindSnapshot]), "20480 snapshot "+origin.Path+" "+cow+" P 32"; got != want {
		t.Errorf("snapshot:\n%s\nwant:\n%s", got, want)
	}
	if err := os.Truncate(l.cow(), disk.CowSize(20*mib)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := l.snapshots.Grow(t.Context(), owner, 20*mib); err != nil || got != path {
			t.Fatalf("grow: %q, %v", got, err)
		}
	}
	if got, want := m.Table(names[disk.KindOrigin]), "4096 linear "+base+" 0\n36864 zero"; got != want {
		t.Errorf("origin, grown:\n%s\nwant:\n%s", got, want)
	}
	if size, err := linux.DiskSize(cow); err != nil || size != disk.CowSize(20*mib) {
		t.Errorf("the loop device has %d bytes, %v", size, err)
	}
	l.boot() // adopt
	if got, err := l.snapshots.Path(t.Context(), owner); err != nil || got != path {
		t.Errorf("after a restart: %q, %v", got, err)
	}
	if err := l.ledger.Recover(t.Context(), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	l.empty()
}

// TestSnapshotWithoutRows has the devices of a ledger that was lost go, which hang
// together.
func TestSnapshotWithoutRows(t *testing.T) {
	l := newLab(t, hosttest.NewMapper(t.TempDir()), 4*mib, disk.CowSize(4*mib))
	l.acquire()
	refs, err := l.db.Resources(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range refs {
		if err := l.db.DeleteResource(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.ledger.Recover(t.Context(), func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	l.empty()
}

func TestSnapshotRefuses(t *testing.T) {
	m := hosttest.NewMapper(t.TempDir())
	l := newLab(t, m, mib, disk.CowSize(mib))
	if err := l.snapshots.Acquire(t.Context(), owner, l.v); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("smaller than its base: %v", err)
	}
	gone := l.v
	gone.Base = "gone.ext4"
	if err := l.snapshots.Acquire(t.Context(), owner, gone); api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(api.AsError(err).Hint, "reset") {
		t.Errorf("without its base: %v", err)
	}
	m.Lack(true)
	if err := l.snapshots.Check(); api.CodeOf(err) != api.CodeUnsupported || !strings.Contains(api.AsError(err).Hint, "modprobe") {
		t.Errorf("without device-mapper: %v", err)
	}
}

// TestCowSize compares with a count of the chunks that the kernel goes through.
func TestCowSize(t *testing.T) {
	const perArea = chunk / 16
	for _, chunks := range []int64{1, perArea - 1, perArea, perArea + 1, 5*perArea - 1, 5 * perArea, 655360} {
		last := int64(0)
		for n, next := int64(0), int64(2); n < chunks; n++ { // persistent_prepare_exception
			last = next
			if next++; next%(perArea+1) == 1 {
				next++
			}
			if (n+1)%perArea == 0 { // persistent_commit_exception clears the next area
				last = 1 + (perArea+1)*((n+1)/perArea)
			}
		}
		if got, least := disk.CowSize(chunks*chunk), (last+1)*chunk; got < least || got > least+chunk*(perArea+1) {
			t.Errorf("%d chunks: %d bytes, needed are %d", chunks, got, least)
		}
	}
}

// kernelMapper is the kernel's, where it has one; see internal/linux.
func kernelMapper(t *testing.T) disk.Mapper {
	t.Helper()
	if err := (linux.DeviceMapper{}).Supports("linear", "zero", "snapshot"); err != nil {
		if os.Getenv("BANGER_TEST_DM") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return linux.DeviceMapper{}
}

// overwrite writes the whole of a device anew and returns what it wrote.
func overwrite(t *testing.T, path string, size int64) ([]byte, error) {
	t.Helper()
	content := make([]byte, size)
	rand.Read(content)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(content, 0)
	return content, errors.Join(err, f.Sync(), f.Close())
}

// TestKernelSnapshotFull writes every chunk of a disk: the copy-on-write file is large
// enough, and were it a chunk smaller it would not be.
func TestKernelSnapshotFull(t *testing.T) {
	for name, size := range map[string]int64{"whole areas": 16 * mib, "and a bit": 16*mib + 3*chunk} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, kernelMapper(t), size, disk.CowSize(size))
			content, err := overwrite(t, l.acquire(), size)
			if err != nil {
				t.Fatal(err)
			}
			status, err := l.mapper.Status(l.names()[disk.KindSnapshot])
			t.Logf("status: %s, %v", status, err)
			if err := l.ledger.ReleaseOwner(t.Context(), owner); err != nil {
				t.Fatal(err)
			}
			l.empty()
			got, err := os.ReadFile(l.acquire()) // from the file alone
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("what was written is not what is read, %v", err)
			}
			if base, err := os.ReadFile(filepath.Join(l.dir, l.v.Base)); err != nil || !bytes.Equal(base, l.base) {
				t.Errorf("the base has changed, %v", err)
			}
		})
	}
	t.Run("too small", func(t *testing.T) {
		l := newLab(t, kernelMapper(t), 16*mib, disk.CowSize(16*mib)-chunk)
		_, err := overwrite(t, l.acquire(), 16*mib)
		t.Logf("write: %v", err)
		if err := l.ledger.ReleaseOwner(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		if err := l.snapshots.Acquire(t.Context(), owner, l.v); api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(api.AsError(err).Hint, "reset") {
			t.Errorf("a spoilt snapshot: %v", err)
		}
	})
}

// TestKernelSnapshotInUse has a disk grow and be released while somebody has it open.
func TestKernelSnapshotInUse(t *testing.T) {
	l := newLab(t, kernelMapper(t), 4*mib, disk.CowSize(4*mib))
	path := l.acquire()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("kept"), mib); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(l.cow(), disk.CowSize(40*mib)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.snapshots.Grow(t.Context(), owner, 40*mib); err != nil {
		t.Fatal(err)
	}
	if size, err := linux.DiskSize(path); err != nil || size != 40*mib {
		t.Errorf("grown: %d bytes, %v", size, err)
	}
	for _, at := range []int64{3 * mib, 39 * mib} {
		if _, err := f.WriteAt([]byte("more"), at); err != nil {
			t.Errorf("write at %d: %v", at, err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if err := l.ledger.ReleaseOwner(t.Context(), owner); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("release what is open: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.ledger.ReleaseOwner(t.Context(), owner); err != nil {
		t.Error(err)
	}
	l.empty()
	l.v.Size = 40 * mib
	content, err := os.ReadFile(l.acquire())
	if err != nil || !bytes.HasPrefix(content[mib:], []byte("kept")) || !bytes.HasPrefix(content[39*mib:], []byte("more")) {
		t.Errorf("what was written is lost, %v", err)
	}
}
