// Package space knows what files really take of the disk, and whether there is room
// for more. Room admits what is about to be written; Counter measures what has been.
package space

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"banger/api"
	"banger/internal/linux"

	"github.com/docker/go-units"
)

// Item is something that nobody needs, or only its owner knows whether anybody does.
type Item struct {
	Kind   string // what it is, for people: layer, cache, initramfs, ...
	Name   string
	Paths  []string // the files and directories that it consists of
	Remove func(context.Context) error
}

// Hint is the next step of who finds no space.
const Hint = "banger system df shows what takes the space, banger system prune frees some"

// Room is the place in which an installation keeps its files. The zero Room has room
// for everything.
type Room struct {
	Dir     string // a directory of the file system
	Reserve int64  // bytes that are to stay available; negative: a twentieth of the file system, 1 GiB at most
}

// maxReserve bounds the reserve where none was asked for, in bytes.
const maxReserve = 1 << 30

// Look returns how full the place is, and what is kept back of it.
func (r Room) Look() (fs linux.FileSystem, reserve int64, err error) {
	fs, err = linux.FileSystemOf(r.Dir)
	if reserve = r.Reserve; reserve < 0 {
		reserve = min(fs.Size/20, maxReserve)
	}
	return fs, reserve, err
}

// Admit refuses, with code no_space, what needs more bytes than there are beyond the
// reserve; what names it for people, as in `create VM "api"`. Nothing is set apart for
// who was admitted: the reserve is there for those who come at once.
func (r Room) Admit(what string, need int64) error {
	if r.Dir == "" {
		return nil
	}
	fs, reserve, err := r.Look()
	if err != nil {
		return err
	}
	if fs.Available-reserve >= need {
		return nil
	}
	return api.Errorf(api.CodeNoSpace, "%s: it needs %s, and %s has %s available, of which %s are kept free", what,
		bytes(need), r.Dir, bytes(fs.Available), bytes(reserve)).WithHint("%s", Hint)
}

func bytes(n int64) string { return units.BytesSize(float64(n)) }

// Counter measures files by the blocks that they have, as du(1) does; a file that it
// meets again, by whatever name, is counted no more. The zero Counter is not usable.
type Counter struct{ seen map[inode]bool }

type inode struct{ dev, ino uint64 }

// NewCounter returns a Counter that has met no file.
func NewCounter() *Counter { return &Counter{map[inode]bool{}} }

// Bytes returns what the file or tree at path takes and was not counted before. What
// is not there takes nothing: files come and go meanwhile.
func (c *Counter) Bytes(path string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if id := (inode{st.Dev, st.Ino}); !c.seen[id] {
			c.seen[id] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}

// Remove removes a file that may be gone already.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
