package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"banger/api"
)

// readMemory is what a machine that only reads a root is given, in bytes.
const readMemory = 512 << 20

// readOwnerOf is the owner in the ledger of a machine that reads a VM's root.
func readOwnerOf(id string) string { return "vm/" + id + "/read" }

// promote makes an image of the root of a VM that is stopped: its image with one more
// layer where the root is an overlay. The host does not
// look into a guest's file system: a machine with the VM's root and nothing else
// is booted, in which none of the root's programs run, and its agent sends the
// archive.
func (s *Service) promote(ctx context.Context, rec Record, uid uint32, image string, report api.Reporter) (err error) {
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err != nil {
			err = cmp.Or(ctx.Err(), err) // what a cancelled one met is not why it ended
		}
		err = errors.Join(err, s.ledger.ReleaseOwner(after, readOwnerOf(rec.ID)))
		err = api.About(err, "promote VM %q", rec.Name)
	}()
	if err := s.releaseRun(rec); err != nil { // as before a start
		return err
	}
	if err := s.acquireDisks(ctx, rec, report); err != nil {
		return err
	}
	b, err := s.boot(ctx, readOwnerOf(rec.ID), reader(rec), s.rootOf(rec), newStopwatch(), 0, report)
	if err != nil {
		return fmt.Errorf("read its root: %w", err)
	}
	defer func() { b.conn.Close(); err = errors.Join(err, b.inst.Close()) }()
	whole := rec.RootDisk != api.RootDiskOverlay
	if !whole {
		var stackable bool
		if stackable, err = s.assets.Stackable(ctx, rec.ImageID); err != nil {
			return err
		}
		whole = !stackable
	}
	var tar io.ReadCloser
	if whole { // what is mounted in the root is not of it
		tar, err = b.conn.ReadFiles(ctx, api.ReadFiles{Path: "/", OneFileSystem: true})
	} else {
		tar, err = b.conn.ReadLayer(ctx)
	}
	if err != nil {
		return fmt.Errorf("read its root: %w", err)
	}
	defer tar.Close()
	report(api.Progress{Step: "import"})
	return s.assets.Commit(ctx, uid, image, rec.ImageID, whole, tar, report) // which checks what comes
}

// reader is the record of a machine that only reads what a VM has.
func reader(rec Record) Record {
	rec.CPUs, rec.Memory, rec.DiskSize, rec.Network, rec.Init, rec.HostKey = 1, readMemory, 0, api.NetworkNone, false, ""
	return rec
}

// reader says whether it is one.
func (r Record) reader() bool { return r.HostKey == "" }
