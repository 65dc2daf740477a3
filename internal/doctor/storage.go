package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/space"

	"github.com/docker/go-units"
)

func bytes(n int64) string { return units.BytesSize(float64(n)) }

// checkRoom looks at how full the disk is.
func (c Config) checkRoom(context.Context) []api.Finding {
	const check = "space"
	fs, reserve, err := c.Room.Look()
	if errors.Is(err, syscall.ENOENT) {
		return ok(groupStorage, check, "%s is not there yet; the daemon's first start makes it", c.Room.Dir)
	}
	if err != nil {
		return unknown(groupStorage, check, err)
	}
	const advice = "banger system df shows what takes it, banger system prune frees some."
	switch {
	case fs.Available < reserve:
		f := found(groupStorage, check, api.SeverityError, "%s has %s available, less than the %s that are to stay free", c.Room.Dir, bytes(fs.Available), bytes(reserve))
		return []api.Finding{advise(f, "Nothing new is made, and what VMs write may not find room.", advice)}
	case fs.Available < 2*reserve:
		f := found(groupStorage, check, api.SeverityWarning, "%s has %s available, of which %s are to stay free", c.Room.Dir, bytes(fs.Available), bytes(reserve))
		return []api.Finding{advise(f, "There is little room for more VMs and images.", advice)}
	}
	return ok(groupStorage, check, "%s has %s available", c.Room.Dir, bytes(fs.Available))
}

// checkDisk reads from the disk itself: what the kernel remembers of one that fails may
// look well for long. The database is not what it reads: to close it would take its locks
// from the daemon.
func (c Config) checkDisk(context.Context) []api.Finding {
	const check = "disk"
	err := linux.Readable(filepath.Join(c.Paths.State, "installation.json"))
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil
	case errors.Is(err, syscall.EIO):
		f := found(groupStorage, check, api.SeverityError, "the disk of %s fails: %v", c.Paths.State, err)
		return []api.Finding{advise(f, "Nothing can be made, changed or written down, and VMs lose what they write. They go on as long as what they need is in memory.",
			"Look at what the kernel says (dmesg), save what can be read, repair the disk; then kill the daemon: the next one puts right what was left half done.")}
	}
	return unknown(groupStorage, check, err)
}

// place is a file or directory of ours, with the permission bits that it must not have.
type place struct {
	path   string
	dir    bool
	denied fs.FileMode
}

// places are what an installation always has. Others may pass through the directories,
// to the socket and to what belongs to the VMMs; they write nowhere.
func (c Config) places() []place {
	state, run := c.Paths.State, c.Paths.Run
	return []place{
		{state, true, 0o022}, {filepath.Join(state, "vms"), true, 0o022}, {filepath.Join(state, "suspended"), true, 0o022}, {filepath.Join(state, "layers"), true, 0o022},
		{filepath.Join(state, "kernels"), true, 0o022}, {filepath.Join(state, "cache"), true, 0o022},
		{run, true, 0o022}, {filepath.Join(run, "vm"), true, 0o022},
		{filepath.Join(state, "banger.db"), false, 0o077}, {filepath.Join(state, "installation.json"), false, 0o022},
		{filepath.Join(state, "lock"), false, 0o022}, {filepath.Join(state, "bangerd.log"), false, 0o022},
	}
}

// wrong says what is wrong with who may do what with a place; empty where nothing is.
func (p place) wrong() (string, error) {
	info, err := os.Lstat(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.IsDir() != p.dir || !p.dir && !info.Mode().IsRegular():
		return "is not what it should be, but " + info.Mode().Type().String(), nil
	case ok && st.Uid != rootUID:
		return fmt.Sprintf("belongs to user %d, not to root", st.Uid), nil
	case info.Mode()&p.denied != 0:
		return fmt.Sprintf("has mode %#o, by which others than root may do too much", info.Mode().Perm()), nil
	}
	return "", nil
}

// checkDirectories looks at who may do what with what is ours.
func (c Config) checkDirectories(context.Context) []api.Finding {
	var out []api.Finding
	for _, p := range c.places() {
		wrong, err := p.wrong()
		switch {
		case errors.Is(err, fs.ErrPermission):
			return ok(groupStorage, "permissions", "only root may look into %s", c.Paths.State)
		case err != nil:
			out = append(out, unknown(groupStorage, "permissions", err)...)
			continue
		case wrong != "":
			f := found(groupStorage, "permissions", api.SeverityError, "%s %s", p.path, wrong)
			f.Fixable = true
			out = append(out, advise(f, "Who may write there may take over the daemon and the VMs, or read their keys.", "banger doctor --fix"))
		}
		if p.dir && os.Geteuid() == rootUID {
			if err := linux.Writable(p.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				f := found(groupStorage, "writable", api.SeverityError, "%v", err)
				out = append(out, advise(f, "VMs, images and kernels can be neither made nor changed.",
					"Mount its file system for writing (see dmesg if it was not always read-only), or name other directories by BANGER_STATE_DIR and BANGER_RUN_DIR."))
			}
		}
	}
	if out == nil {
		return ok(groupStorage, "permissions", "the directories and files belong to root, and only root writes to them")
	}
	return out
}

// checkSocket looks at who may talk to the daemon.
func (c Config) checkSocket(context.Context) []api.Finding {
	const check = "group"
	g, err := user.LookupGroup(c.Group)
	if _, none := errors.AsType[user.UnknownGroupError](err); none {
		f := found(groupStorage, check, api.SeverityOK, "there is no group %s: only root may use banger", c.Group)
		return []api.Finding{advise(f, "", "Where others are to: groupadd "+c.Group+"; usermod --append --groups "+c.Group+" USER; banger system stop")}
	}
	if err != nil {
		return unknown(groupStorage, check, err)
	}
	if !c.Served {
		return ok(groupStorage, check, "members of the group %s may use banger", c.Group)
	}
	info, err := os.Lstat(c.Paths.Socket())
	if err != nil {
		return unknown(groupStorage, check, err)
	}
	st, isStat := info.Sys().(*syscall.Stat_t)
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil || !isStat {
		return unknown(groupStorage, check, fmt.Errorf("group %s has the id %q: %w", c.Group, g.Gid, err))
	}
	if uint64(st.Gid) != gid || info.Mode().Perm() != 0o660 {
		f := found(groupStorage, check, api.SeverityWarning, "%s is not for the group %s, but has mode %#o and group %d", c.Paths.Socket(), c.Group, info.Mode().Perm(), st.Gid)
		f.Fixable = true
		return []api.Finding{advise(f, "Members of the group cannot use banger: it was made after the daemon started, or somebody changed the socket.", "banger doctor --fix")}
	}
	return ok(groupStorage, check, "members of the group %s may use banger", c.Group)
}

// checkLost looks for what was set aside.
func (c Config) checkLost(context.Context) []api.Finding {
	const check = "set-aside"
	paths, err := resource.Aside(c.Paths.State)
	if err != nil {
		return unknown(groupStorage, check, err)
	}
	var out []api.Finding
	for _, path := range paths {
		n, err := space.NewCounter().Bytes(path)
		if err != nil {
			out = append(out, unknown(groupStorage, check, err)...)
			continue
		}
		f := found(groupStorage, check, api.SeverityWarning, "%s holds %s that were set aside", path, bytes(n))
		out = append(out, advise(f, "It is damaged, or nothing knew any more of what it is; work disks of VMs may be in it.",
			"Take out of it what you need; banger system prune --lost removes it."))
	}
	if out == nil {
		return ok(groupStorage, check, "nothing was set aside")
	}
	return out
}
