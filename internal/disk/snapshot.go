package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
)

// Snapshots assembles root disks that are one block device each: a snapshot, by
// device-mapper, of an image's base, whose changes are in a copy-on-write file.
//
//	base file -- loop, read-only --+
//	                               +-- origin: linear, then zeros -- snapshot -> guest
//	               zeros ----------+                                    |
//	cow file --- loop ------------------------- chunks that were written
//
// The zeros after the base are what the device grows by. Each of the four devices is
// a resource of its own, acquired in this order and released backwards.
type Snapshots struct {
	ledger       *resource.Ledger
	installation string
	stateDir     string
	mapper       Mapper
}

// NewSnapshots returns Snapshots for a ledger that has the SnapshotKinds.
func NewSnapshots(ledger *resource.Ledger, installation, stateDir string, mapper Mapper) *Snapshots {
	return &Snapshots{ledger, installation, stateDir, mapper}
}

// Snapshot is a root disk to be.
type Snapshot struct {
	Base string // file below the state directory; nobody writes to it for as long as there are snapshots of it
	Cow  string // likewise, of CowSize(Size) bytes at least
	Size int64  // bytes, not less than the base has
}

// chunk is the unit in which a snapshot copies, in bytes: the kernel's own default,
// DM_CHUNK_SIZE_DEFAULT_SECTORS of drivers/md/dm-snap-persistent.c. A chunk of the
// copy-on-write file holds the places of perArea others, struct disk_exception there.
const (
	chunk   = 16 << 10
	perArea = chunk / 16
)

// CowSize returns how many bytes the copy-on-write file needs for a disk of size
// bytes, so that it cannot overflow: every chunk is written at most once. It begins
// with a header, then areas follow, each a chunk of places and the perArea chunks that
// they are of (area_location). When the last place of an area is taken, the next
// area is cleared at once (persistent_commit_exception), so that one more is needed
// than is used.
func CowSize(size int64) int64 {
	chunks := (size + chunk - 1) / chunk
	return chunk * (1 + chunks + chunks/perArea + 1)
}

// Check says whether the kernel can; if not, the error is unsupported.
func (s *Snapshots) Check() error {
	err := s.mapper.Supports("linear", "zero", "snapshot")
	if err == nil {
		_, err = os.Stat("/dev/loop-control")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.CodeUnsupported, "root disk dm-snapshot: the kernel has no device-mapper snapshots or no loop devices: %w", err).
			WithHint("modprobe -a loop dm_snapshot, or --root-disk overlay")
	}
	if err != nil {
		return fmt.Errorf("root disk dm-snapshot: %w", err)
	}
	return nil
}

func (s *Snapshots) name(kind string) string {
	return tagOf(s.installation, kind) + resource.RandomName(4)
}

// Acquire assembles a disk on behalf of owner, who is to give back what is acquired,
// also after an error.
func (s *Snapshots) Acquire(ctx context.Context, owner string, v Snapshot) error {
	base := filepath.Join(s.stateDir, filepath.FromSlash(v.Base))
	baseSize, err := linux.DiskSize(base)
	if errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.CodeUnavailable, "open the base of a root disk: %w", err).WithHint("banger vm reset gives the VM a fresh root")
	}
	if err != nil {
		return err
	}
	if v.Size < baseSize {
		return api.Errorf(api.CodeInvalid, "root disk of %d bytes: its base has %d", v.Size, baseSize)
	}
	var held [2]*os.File
	for i, loop := range []struct {
		kind string
		spec loopSpec
	}{{KindLoopBase, loopSpec{File: v.Base, ReadOnly: true}}, {KindLoopCow, loopSpec{File: v.Cow}}} {
		ref, err := s.ledger.Acquire(ctx, owner, loop.kind, s.name(loop.kind), loop.spec)
		if err != nil {
			return err
		}
		// From here on the kernel drops it when the device that is made of it goes.
		if held[i], err = linux.HoldLoop(ref.Name); err != nil {
			return err
		}
		defer held[i].Close()
	}
	origin, err := s.ledger.Acquire(ctx, owner, KindOrigin, s.name(KindOrigin), deviceSpec{ReadOnly: true, Table: originTable(held[0].Name(), baseSize, v.Size)})
	if err != nil {
		return err
	}
	device, err := s.mapper.Find(origin.Name)
	if err != nil {
		return err
	}
	snapshot, err := s.ledger.Acquire(ctx, owner, KindSnapshot, s.name(KindSnapshot), deviceSpec{Table: snapshotTable(device.Path, held[1].Name(), v.Size)})
	if err != nil {
		return err
	}
	return s.sound(snapshot.Name)
}

// sound looks whether a snapshot is one that can be used: an error while it was
// written, such as a full disk of the host's, spoils it for ever.
func (s *Snapshots) sound(name string) error {
	status, err := s.mapper.Status(name)
	if err != nil {
		return err
	}
	if !strings.Contains(status, "/") { // else so many sectors of so many; a word is what is wrong
		return api.Errorf(api.CodeUnavailable, "root disk %s: the kernel says it is %q: what was written to it is lost", name, status).
			WithHint("banger vm reset gives the VM a fresh root")
	}
	return nil
}

// originTable and snapshotTable are the tables of a disk's two devices; sizes in bytes.
func originTable(base string, baseSize, size int64) []linux.DMTarget {
	table := []linux.DMTarget{{Sectors: baseSize / linux.SectorSize, Type: "linear", Params: base + " 0"}}
	if size > baseSize {
		table = append(table, linux.DMTarget{Sectors: (size - baseSize) / linux.SectorSize, Type: "zero"})
	}
	return table
}

func snapshotTable(origin, cow string, size int64) []linux.DMTarget {
	return []linux.DMTarget{{
		Sectors: size / linux.SectorSize, Type: "snapshot",
		Params: fmt.Sprintf("%s %s P %d", origin, cow, chunk/linux.SectorSize), // persistent
	}}
}

// Path returns the device of the disk that owner has.
func (s *Snapshots) Path(ctx context.Context, owner string) (string, error) {
	names, err := s.names(ctx, owner)
	if err != nil {
		return "", err
	}
	device, err := s.mapper.Find(names[KindSnapshot])
	return device.Path, err
}

// names are those of what an owner has of a disk, by kind.
func (s *Snapshots) names(ctx context.Context, owner string) (map[string]string, error) {
	held, err := s.ledger.Held(ctx, owner)
	names := map[string]string{}
	for _, ref := range held {
		names[ref.Kind] = ref.Name
	}
	return names, err
}

// Grow gives the disk that owner has, and that may be in use, a size in bytes, for
// which its copy-on-write file has grown already. It returns its device.
func (s *Snapshots) Grow(ctx context.Context, owner string, size int64) (string, error) {
	names, err := s.names(ctx, owner)
	if err != nil {
		return "", err
	}
	if err := linux.GrowLoop(names[KindLoopCow]); err != nil {
		return "", err
	}
	base, err := linux.FindLoop(names[KindLoopBase])
	if err != nil {
		return "", err
	}
	baseSize, err := linux.DiskSize(base)
	if err != nil {
		return "", err
	}
	cow, err := linux.FindLoop(names[KindLoopCow])
	if err != nil {
		return "", err
	}
	origin, err := s.mapper.Find(names[KindOrigin])
	if err != nil {
		return "", err
	}
	if err := s.mapper.Reload(names[KindOrigin], true, originTable(base, baseSize, size)); err != nil {
		return "", err
	}
	if err := s.mapper.Reload(names[KindSnapshot], false, snapshotTable(origin.Path, cow, size)); err != nil {
		return "", err
	}
	return s.Path(ctx, owner)
}
