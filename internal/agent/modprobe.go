package agent

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"banger/internal/linux"
)

const (
	// modprobePath is where this program lies in the guest's tree for the kernel to
	// call, in the role that the path's last element names.
	modprobePath = "/run/banger/modprobe"
	roleModprobe = "modprobe"

	modprobeSetting = "/proc/sys/kernel/modprobe"

	maxModule     = 256 << 20 // bytes of an unpacked module
	maxDictionary = 64 << 20  // bytes that unpacking it may look back
)

// serveModules makes the kernel ask this program for the modules that it lacks,
// unless the image has kmod, whose configuration counts then. Its file lies in the
// initramfs, where a process of it that lives as long as the guest, pid, leads to.
// A kernel that takes no modules does not ask. See modprobe in
// Documentation/admin-guide/sysctl/kernel.rst.
func serveModules(pid int) error {
	if _, err := os.Stat(modprobeSetting); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if target, err := os.Readlink("/sbin/modprobe"); err == nil && filepath.Base(target) == "kmod" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(modprobePath), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(fmt.Sprintf("/proc/%d/exe", pid), modprobePath); err != nil {
		return err
	}
	return os.WriteFile(modprobeSetting, []byte(modprobePath), 0)
}

// modprobe is the program as the kernel (`-q -- NAME`) and others (`NAME -q`, `-va
// NAME...`) call modprobe(8): it loads what the names mean.
func modprobe(args []string) error {
	names, quiet, err := modprobeArgs(args)
	if err != nil {
		return err
	}
	if quiet {
		log.SetOutput(io.Discard)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	dir, err := os.OpenRoot(filepath.Join("/lib/modules", strings.TrimSpace(string(release))))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	index, err := readModuleIndex(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, loadNamed(dir, index, name))
	}
	return errors.Join(errs...)
}

func modprobeArgs(args []string) (names []string, quiet bool, err error) {
	for i, arg := range args {
		if arg == "--" {
			return append(names, args[i+1:]...), quiet, nil
		}
		flags, ok := strings.CutPrefix(arg, "-")
		if !ok {
			names = append(names, arg)
			continue
		}
		for _, flag := range flags {
			switch flag {
			case 'q':
				quiet = true
			case 'a', 'b', 's', 'v': // all of the names, and how much is said
			default:
				return nil, quiet, fmt.Errorf("modprobe %s: modules can only be loaded here", arg)
			}
		}
	}
	return names, quiet, nil
}

// loadNamed loads the modules that name means, with those that they need.
func loadNamed(dir *os.Root, index *moduleIndex, name string) error {
	modules, known := index.resolve(name)
	if !known {
		return fmt.Errorf("modprobe %s: no such module", name)
	}
	for _, module := range modules {
		for step := range index.plan(module) {
			if err := loadFile(dir, step.file); err != nil && !step.wanted {
				return fmt.Errorf("modprobe %s: %w", name, err)
			}
		}
	}
	return nil
}

func loadFile(dir *os.Root, name string) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	plain, err := unpackModule(f, filepath.Ext(name))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	if plain != f {
		defer func() { _ = plain.Close() }()
	}
	return linux.LoadModuleFile(plain)
}

// unpackModule returns a file with the module that is in f, which is f itself where
// it is not compressed.
func unpackModule(f *os.File, ext string) (*os.File, error) {
	var r io.Reader
	var err error
	switch ext {
	case ".ko":
		return f, nil
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".xz":
		r, err = xz.NewReader(f, maxDictionary)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary)); err == nil {
			defer z.Close()
			r = z
		}
	default:
		err = errors.New("unknown compression")
	}
	if err != nil {
		return nil, err
	}
	plain, err := linux.MemFile("module")
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(plain, io.LimitReader(r, maxModule+1))
	if err == nil && n > maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	if err != nil {
		_ = plain.Close()
		return nil, err
	}
	return plain, nil
}
