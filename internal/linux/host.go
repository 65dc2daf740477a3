package linux

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LockHeld tells whether a process holds the lock file at path, and what it has written
// into it. Nothing is changed; one that takes the lock in that instant is refused.
func LockHeld(path string) (held bool, holder string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, "", nil
	}
	if err != nil {
		return false, "", err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return false, "", nil // closing gives it back
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return false, "", fmt.Errorf("look at lock %s: %w", path, err)
	}
	text, err := os.ReadFile(path)
	return true, strings.TrimSpace(string(text)), err
}

// Writable tells whether files can be made in a directory, without making one:
// access(2), which knows of read-only file systems also where root asks.
func Writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	return nil
}

// ModuleState says how the running kernel has a module.
type ModuleState string

// The states of a module.
const (
	ModuleLoaded    ModuleState = "loaded" // or built in and seen in /sys/module
	ModuleAvailable ModuleState = "available"
	ModuleMissing   ModuleState = "missing"
	ModuleUnknown   ModuleState = "unknown" // the kernel's list of modules is not installed
)

// ModuleOf looks for a module of the running kernel, by its name with underscores; modules.dep(5).
func ModuleOf(name string) (ModuleState, error) {
	if _, err := os.Stat(filepath.Join("/sys/module", name)); err == nil {
		return ModuleLoaded, nil
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]))
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); errors.Is(err, fs.ErrNotExist) {
		return ModuleUnknown, nil
	}
	for file, state := range map[string]ModuleState{"modules.builtin": ModuleLoaded, "modules.dep": ModuleAvailable} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		text = bytes.ReplaceAll(text, []byte("-"), []byte("_"))
		for line := range bytes.Lines(text) {
			path, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
			base, _, _ := strings.Cut(filepath.Base(string(path)), ".")
			if base == name {
				return state, nil
			}
		}
	}
	return ModuleMissing, nil
}

// CgroupControllers returns the controllers that the cgroup v2 hierarchy mounted at
// root can use; none where v1 hierarchies have them all; cgroups(7).
func CgroupControllers(root string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	return strings.Fields(string(text)), err
}

// Readable says why the first bytes of a file cannot be read from its disk, past what the
// kernel remembers of it; nil also where a file system cannot tell.
func Readable(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == unix.EINVAL {
		return nil
	}
	if err == nil {
		const block = 4096
		buf := make([]byte, 2*block)
		skip := (block - int(uintptr(unsafe.Pointer(&buf[0]))%block)) % block
		_, err = unix.Read(fd, buf[skip:skip+block])
		_ = unix.Close(fd) // nothing was written
	}
	if err != nil && err != unix.EINVAL {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}
