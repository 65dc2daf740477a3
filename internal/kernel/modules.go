package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"banger/api"
	"banger/internal/guest/wire"
	"banger/internal/intake"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/cavaliergopher/cpio"
)

// bootModules are loaded by the agent before it can mount anything. The needed ones
// must be there, as a module or built in.
var bootModules = []struct {
	name   string
	needed bool
}{
	{"virtio_ring", true}, {"virtio", true}, {"virtio_mmio", true}, {"virtio_blk", true}, {"virtio_console", true},
	{"ext4", true}, {"overlay", true},
	{"virtio_rng", false}, {"virtio_net", false}, {"vmw_vsock_virtio_transport", false}, {"virtio_balloon", false},
	{"virtio_pci", false}, // for machines with more devices than virtio_mmio serves
}

// tree is the unpacked lib/modules/<release> of a kernel.
type tree struct {
	dir     string
	files   map[string]string // module name -> path below dir
	builtin map[string]bool
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readTree finds the modules below dir.
func readTree(dir string) (*tree, error) {
	t := &tree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path.Base(p), ".ko") {
			t.files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		t.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return t, nil
}

// load reads a module, unpacked.
func (t *tree) load(name string) ([]byte, error) {
	file := t.files[name]
	f, err := os.Open(filepath.Join(t.dir, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, _, err := intake.OpenWithin(f, maxWindow)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 64<<20))
}

// dependencies reads what a module says of itself in its .modinfo section: the
// modules that it cannot be loaded without, and those that it would like before it.
func dependencies(module []byte) (hard, soft []string, err error) {
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, err
	}
	for word := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(word), "depends="); ok && list != "" {
			for name := range strings.SplitSeq(list, ",") {
				hard = append(hard, strings.ReplaceAll(name, "-", "_"))
			}
		}
		if list, ok := strings.CutPrefix(string(word), "softdep=pre: "); ok {
			list, _, _ = strings.Cut(list, "post:")
			soft = append(soft, strings.Fields(strings.ReplaceAll(list, "-", "_"))...)
		}
	}
	return hard, soft, nil
}

// writeBootModules writes the cpio archive with the modules of an initramfs, and the
// list of them in an order in which each comes after those that it depends on.
func (t *tree) writeBootModules(w io.Writer) error {
	archive := cpio.NewWriter(w)
	var order strings.Builder
	if err := addDir(archive, wire.ModulesDir); err != nil {
		return err
	}
	seen := map[string]bool{}
	var add func(name string, needed bool) error
	add = func(name string, needed bool) error {
		if seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		if t.files[name] == "" {
			if !needed {
				return nil
			}
			return api.Errorf(api.CodeUnsupported, "it lacks %s, as a module or built in", name).
				WithHint("choose a kernel for virtual machines, such as linux-image-cloud-amd64")
		}
		module, err := t.load(name)
		if err != nil {
			return err
		}
		hard, soft, err := dependencies(module)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "module %s: %w", name, err)
		}
		for _, dep := range hard {
			if err := add(dep, true); err != nil {
				return err
			}
		}
		for _, dep := range soft {
			if err := add(dep, false); err != nil {
				return err
			}
		}
		fmt.Fprintln(&order, name+".ko")
		return addFile(archive, wire.ModulesDir+"/"+name+".ko", 0o644, module)
	}
	for _, m := range bootModules {
		if err := add(m.name, m.needed); err != nil {
			return err
		}
	}
	if err := addFile(archive, wire.ModulesOrder, 0o644, []byte(order.String())); err != nil {
		return err
	}
	return archive.Close()
}

// consoleNode is the entry of /dev/console, c 5 1, which is stdin, stdout and stderr of
// /init. The cpio package writes no device numbers. Documentation/driver-api/early-userspace/buffer-format.rst.
const consoleNode = "070701" + // magic
	"00000000" + "00002180" + "00000000" + "00000000" + "00000001" + // ino, mode, uid, gid, nlink
	"00000000" + "00000000" + "00000000" + "00000000" + // mtime, filesize, maj, min
	"00000005" + "00000001" + "0000000c" + "00000000" + // rmaj, rmin, namesize, chksum
	"dev/console\x00" + "\x00\x00" // padded to a multiple of 4

// writeInit writes the cpio archive that is appended to the modules': the agent.
func writeInit(w io.Writer, agent []byte) error {
	archive := cpio.NewWriter(w)
	for _, dir := range []string{"/dev", "/proc", "/sys", "/newroot"} {
		if err := addDir(archive, dir); err != nil {
			return err
		}
	}
	if err := archive.Flush(); err != nil {
		return err
	}
	if _, err := io.WriteString(w, consoleNode); err != nil {
		return err
	}
	if err := addFile(archive, "/init", 0o755, agent); err != nil {
		return err
	}
	return archive.Close()
}

func addDir(w *cpio.Writer, name string) error {
	return w.WriteHeader(&cpio.Header{Name: strings.TrimPrefix(name, "/"), Mode: cpio.TypeDir | 0o755, Links: 2})
}

func addFile(w *cpio.Writer, name string, mode cpio.FileMode, content []byte) error {
	h := &cpio.Header{Name: strings.TrimPrefix(name, "/"), Mode: cpio.TypeReg | mode, Size: int64(len(content)), Links: 1}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// writeModulesDisk makes the read-only disk with all modules below dir, which has
// the layout of / for depmod(8): lib/modules/<release>.
func writeModulesDisk(ctx context.Context, disk *os.File, dir, release string) error {
	depmod, err := exec.LookPath("depmod")
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "index the kernel's modules: %w", err).WithHint("apt-get install kmod")
	}
	cmd := exec.CommandContext(ctx, depmod, "-b", dir, release)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(strings.ToLower(string(out)), syscall.ENOSPC.Error()) { // it says so in words alone
			return fmt.Errorf("index the kernel's modules: depmod: %w", syscall.ENOSPC)
		}
		return api.Errorf(api.CodeInvalid, "index the kernel's modules: depmod: %w: %s", err, oneLine(out))
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(tarModules(pw, filepath.Join(dir, "lib/modules"))) }()
	tree := intake.UntilDone(ctx, pr)
	defer tree.Close()
	err = tar2ext4.ConvertTarToExt4(tree, disk)
	pr.CloseWithError(err)
	if err != nil {
		return fmt.Errorf("make the disk of modules: %w", err)
	}
	return nil
}

func tarModules(w io.Writer, dir string) error {
	archive := tar.NewWriter(w)
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./" + p, Mode: 0o755})
		}
		content, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./" + p, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = archive.Write(content)
		return err
	})
	return errors.Join(err, archive.Close())
}
