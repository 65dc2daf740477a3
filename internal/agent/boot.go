package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// Where the initramfs mounts what the root is made of. upperMount is, in the new
// root, where the upper disk can be reached for a clean power-off. systemd leaves
// mounts below /run/initramfs alone until the end, when it makes them read-only; one
// that it unmounted before the root would keep a journal to be replayed.
const (
	newRoot    = "/new"
	layerMount = "/layers"
	upperMount = "/run/initramfs/banger/upper"
)

// bootRoot makes the VM's disks the root directory of process 1.
func bootRoot() (wire.Boot, error) {
	for _, m := range []mount{
		{"proc", "/proc", "proc", ""}, {"sysfs", "/sys", "sysfs", ""}, {"devtmpfs", "/dev", "devtmpfs", ""},
	} {
		if err := m.make(""); err != nil {
			return wire.Boot{}, err
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return wire.Boot{}, err
	}
	boot, err := wire.ParseBoot(string(cmdline))
	if err != nil {
		return wire.Boot{}, err
	}
	if err := loadModules(); err != nil {
		return wire.Boot{}, err
	}
	if err := assemble(boot); err != nil {
		return wire.Boot{}, err
	}
	if err := prepare(boot); err != nil {
		return wire.Boot{}, err
	}
	if err := identify(newRoot, boot.Hostname, boot.MachineID); err != nil {
		return wire.Boot{}, err
	}
	if err := linux.MoveRoot(newRoot); err != nil {
		return wire.Boot{}, err
	}
	return boot, errors.Join(linux.ShareMounts(), linux.LoopbackUp())
}

func loadModules() error {
	order, err := os.ReadFile(wire.ModulesOrder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel with everything built in
	}
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		if err := linux.LoadModule(filepath.Join(wire.ModulesDir, filepath.Base(name))); err != nil {
			return err
		}
	}
	return nil
}

// assemble mounts the root at newRoot.
func assemble(boot wire.Boot) error {
	if boot.Root != "" {
		if err := mountDisk(boot.Root, newRoot, false, "noinit_itable"); err != nil {
			return err
		}
		return linux.GrowExt4(newRoot)
	}
	var lower []string
	for i, name := range boot.Layers {
		dir := fmt.Sprintf("%s/%d", layerMount, i)
		if err := mountDisk(name, dir, true, ""); err != nil {
			return err
		}
		lower = append(lower, dir)
	}
	slices.Reverse(lower) // overlayfs wants the highest first
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if boot.Fill != "" {
		if err := fill(boot.Fill, lower); err != nil {
			return fmt.Errorf("fill the disk: %w", err)
		}
		return linux.Mount("tmpfs", newRoot, "tmpfs", false, "mode=0755") // no program of the image's runs
	}
	if err := mountDisk(boot.Upper, "/upper", false, "noinit_itable"); err != nil {
		return err
	}
	if err := linux.GrowExt4("/upper"); err != nil {
		return err
	}
	for _, dir := range []string{"/upper/upper", "/upper/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return linux.Mount("overlay", newRoot, "overlay", false,
		"redirect_dir=off,metacopy=off,lowerdir="+strings.Join(lower, ":")+",upperdir=/upper/upper,workdir=/upper/work") // so that the upper directory tells all of a layer
}

// mountDisk mounts a disk's ext4; its device may take a moment to appear.
func mountDisk(name, dir string, readOnly bool, options string) error {
	device := "/dev/" + filepath.Base(name)
	for range 500 {
		if _, err := os.Stat(device); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := linux.Mount(device, dir, "ext4", readOnly, options)
	if err != nil && readOnly {
		// A journal that wants to be replayed cannot be on a read-only disk.
		err = linux.Mount(device, dir, "ext4", true, "noload")
	}
	return err
}

// prepare mounts in the new root what programs expect to find.
func prepare(boot wire.Boot) error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", "mode=0620,gid=5,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
		{"tmpfs", "/run", "tmpfs", "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "nsdelegate"},
	} {
		if err := m.make(newRoot); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, newRoot+"/dev/"+link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if boot.Upper != "" {
		if err := os.MkdirAll(newRoot+upperMount, 0o700); err != nil {
			return err
		}
		if err := linux.MoveMount("/upper", newRoot+upperMount); err != nil {
			return err
		}
		if err := bindStorage(); err != nil {
			return err
		}
	}
	if err := mountWork(boot.Work); err != nil {
		return err
	}
	if boot.Modules == "" {
		return nil
	}
	dir, err := directory(newRoot, "lib/modules")
	if err != nil {
		return err
	}
	return mountDisk(boot.Modules, dir, true, "")
}

type mount struct{ source, target, fstype, options string }

func (m mount) make(root string) error {
	dir, err := directory(root, strings.TrimPrefix(m.target, "/"))
	if err != nil {
		return err
	}
	return linux.Mount(m.source, dir, m.fstype, false, m.options)
}

// directory returns the path of a directory in the tree at root, made where it is
// missing. Symbolic links on the way, which are the image's, are followed as
// though root were /; one that leads nowhere is an error.
func directory(root, name string) (string, error) {
	if root == "" {
		return "/" + name, os.MkdirAll("/"+name, 0o755)
	}
	path := "" // resolved, below root
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		next := todo[0]
		todo = todo[1:]
		switch next {
		case "", ".":
			continue
		case "..":
			path = strings.TrimSuffix(filepath.Dir("/"+path), "/")
			continue
		}
		at := filepath.Join(root, path, next)
		info, err := os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := os.Mkdir(at, 0o755); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(at)
			if err != nil {
				return "", err
			}
			if links++; links > 40 {
				return "", fmt.Errorf("%s in the image: too many symbolic links", name)
			}
			if filepath.IsAbs(target) {
				path = ""
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		case !info.IsDir():
			return "", fmt.Errorf("/%s in the image is no directory", filepath.Join(path, next))
		}
		path = filepath.Join(path, next)
	}
	return filepath.Join(root, path), nil
}
