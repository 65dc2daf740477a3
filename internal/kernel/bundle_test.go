package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest/wire"

	"github.com/cavaliergopher/cpio"
	"github.com/pierrec/lz4/v4"
)

const release = "6.1.0-1-test"

// compressors are what kernels and packages are compressed with, by extension.
var compressors = map[string][]string{
	".gz": {"gzip"}, ".xz": {"xz"}, ".zst": {"zstd", "-q"},
	".x86.xz": {"xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"}, // scripts/xz_wrap.sh of the kernel
	".lz4":    nil,
}

func compressed(t *testing.T, ext string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if ext == ".lz4" {
		w := lz4.NewWriter(&out)
		err := w.Apply(lz4.LegacyOption(true))
		if err == nil {
			_, err = w.Write(data)
		}
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	cmd := exec.Command(compressors[ext][0], compressors[ext][1:]...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(data), &out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bzImage wraps payload as the kernel's build does: a setup header of one sector,
// and the unpacked size behind the payload.
func bzImage(payload []byte, size int) []byte {
	image := make([]byte, 1024)
	image[setupSects] = 1
	copy(image[setupMagic:], "HdrS")
	payload = binary.LittleEndian.AppendUint32(slices.Clone(payload), uint32(size))
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "what follows"...)
}

func TestVmlinux(t *testing.T) {
	want := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 100_000)...)
	for ext := range compressors {
		payload := compressed(t, ext, want)
		got, err := extractVmlinux(bzImage(payload, len(want)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes of %d, %v", ext, len(got), len(want), err)
		}
		if _, err := extractVmlinux(bzImage(payload[:len(payload)/2], len(want))); err == nil || api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s, truncated: got %v", ext, err)
		}
		if _, err := extractVmlinux(bzImage(compressed(t, ext, []byte("no ELF file")), 11)); err == nil || api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s, not ELF: got %v", ext, err)
		}
	}
	if got, err := extractVmlinux(want); err != nil || !bytes.Equal(got, want) {
		t.Errorf("an ELF file gave %d bytes, %v", len(got), err)
	}
}

// module is an ELF file with nothing but a .modinfo section.
func module(info ...string) string {
	modinfo, names := strings.Join(info, "\x00")+"\x00", "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	le := func(v ...any) {
		for _, x := range v {
			binary.Write(&b, binary.LittleEndian, x)
		}
	}
	at := uint64(64)
	le(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), at+uint64(len(modinfo)+len(names)),
		uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2))
	b.WriteString(modinfo + names)
	section := func(name, kind uint32, offset, size uint64) {
		le(name, kind, uint64(0), uint64(0), offset, size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	section(0, 0, 0, 0)
	section(1, 1, at, uint64(len(modinfo)))
	section(10, 3, at+uint64(len(modinfo)), uint64(len(names)))
	return b.String()
}

// kernelFiles is the content of a package that makes a bundle.
func kernelFiles() map[string]string {
	lib := "./lib/modules/" + release + "/"
	return map[string]string{
		"./boot/vmlinuz-" + release:          "\x7fELF kernel",
		lib + "modules.builtin":              "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_mmio.ko\n",
		lib + "modules.order":                "",
		lib + "modules.builtin.modinfo":      "",
		lib + "kernel/virtio.ko":             module("license=GPL", "depends=virtio-ring"),
		lib + "kernel/virtio_ring.ko":        module("depends="),
		lib + "kernel/virtio_blk.ko":         module("depends=virtio,virtio_ring", "softdep=pre: not-there"),
		lib + "kernel/virtio_console.ko":     module("depends=virtio"),
		lib + "kernel/fs/overlay/overlay.ko": module("depends="),
	}
}

func plainTar(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deb is a Debian package with the given data.tar, whose header claims size bytes.
func deb(name string, data []byte, size int) []byte {
	head := func(name string, size int) string {
		return fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", size)
	}
	return append([]byte("!<arch>\n"+head("debian-binary", 4)+"2.0\n"+head("control.tar.xz", 3)+"odd\n"+head(name, size)), data...)
}

func kernelDeb(t *testing.T, files map[string]string) []byte {
	t.Helper()
	data := plainTar(t, files)
	return deb("data.tar", data, len(data))
}

func noReport(api.Progress) {}

func TestImport(t *testing.T) {
	plain := plainTar(t, kernelFiles())
	packages := map[string][]byte{"data.tar": plain}
	for _, ext := range []string{".gz", ".xz", ".zst"} {
		packages["data.tar"+ext] = compressed(t, ext, plain)
	}
	for name, data := range packages {
		t.Run(name, func(t *testing.T) {
			m, _, _ := newManager(t)
			k, err := m.Import(t.Context(), "mine", bytes.NewReader(deb(name, data, len(data))), noReport)
			if err != nil {
				t.Fatal(err)
			}
			if k.Name != "mine" || k.Release != release || !k.Default {
				t.Errorf("got %+v", k)
			}
		})
	}
}

func TestImportFindsTheImageBesideItsModules(t *testing.T) {
	m, _, _ := newManager(t)
	files := kernelFiles()
	files["./usr/lib/modules/"+release+"/vmlinuz"] = files["./boot/vmlinuz-"+release]
	delete(files, "./boot/vmlinuz-"+release)
	if _, err := m.Import(t.Context(), "mine", bytes.NewReader(kernelDeb(t, files)), noReport); err != nil {
		t.Error(err)
	}
}

func TestOrderComesAfterDependencies(t *testing.T) {
	m, _, _ := newManager(t)
	k, err := m.Import(t.Context(), "mine", bytes.NewReader(kernelDeb(t, kernelFiles())), noReport)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(filepath.Join(m.Dirs.Path(k.Dir), "modules.cpio"))
	if err != nil {
		t.Fatal(err)
	}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatal("no order file: ", err)
		}
		if "/"+h.Name != wire.ModulesOrder {
			continue
		}
		order, err := io.ReadAll(r)
		want := "virtio_ring.ko\nvirtio.ko\nvirtio_blk.ko\nvirtio_console.ko\noverlay.ko\n"
		if err != nil || string(order) != want {
			t.Errorf("got %q, %v; want %q", order, err, want)
		}
		return
	}
}

// spoiled is packages that are refused, with what the message must name.
func spoiled(t *testing.T) map[string]struct {
	data []byte
	code api.Code
	says string
} {
	t.Helper()
	with := func(change func(files map[string]string)) []byte {
		files := kernelFiles()
		change(files)
		return kernelDeb(t, files)
	}
	lib := "./lib/modules/" + release + "/"
	whole := plainTar(t, kernelFiles())
	end := len(whole) - 1024 // without the two blocks that end an archive
	packed := compressed(t, ".gz", whole)
	packed[len(packed)-6] ^= 1 // in the checksum
	type spoil = struct {
		data []byte
		code api.Code
		says string
	}
	return map[string]spoil{
		"truncated between files": {deb("data.tar", whole[:end], len(whole)), api.CodeInvalid, "EOF"},
		"truncated in gzip":       {deb("data.tar.gz", packed[:len(packed)/2], len(packed)), api.CodeInvalid, "EOF"},
		"wrong checksum":          {deb("data.tar.gz", packed, len(packed)), api.CodeInvalid, "checksum"},
		"no image":                {with(func(f map[string]string) { delete(f, "./boot/vmlinuz-"+release) }), api.CodeInvalid, "vmlinuz"},
		"no modules":              {kernelDeb(t, map[string]string{"./boot/vmlinuz-1": "\x7fELF"}), api.CodeInvalid, "0 kernels"},
		"no virtio_blk": {with(func(f map[string]string) { delete(f, lib+"kernel/virtio_blk.ko") }),
			api.CodeUnsupported, "virtio_blk"},
		"a dependency is missing": {with(func(f map[string]string) { f[lib+"kernel/fs/overlay/overlay.ko"] = module("depends=gone") }),
			api.CodeUnsupported, "gone"},
		"a module that is none": {with(func(f map[string]string) { f[lib+"kernel/virtio_blk.ko"] = "text" }),
			api.CodeInvalid, "virtio_blk"},
		"a release that is an option": {kernelDeb(t, renamed(kernelFiles(), "-n")), api.CodeInvalid, `"-n"`},
	}
}

func renamed(files map[string]string, to string) map[string]string {
	out := map[string]string{}
	for name, content := range files {
		out[strings.Replace(name, "lib/modules/"+release, "lib/modules/"+to, 1)] = content
	}
	return out
}

func TestSpoiledPackagesLeaveNothing(t *testing.T) {
	for name, c := range spoiled(t) {
		t.Run(name, func(t *testing.T) {
			m, db, dir := newManager(t)
			_, err := m.Import(t.Context(), "k", bytes.NewReader(c.data), noReport)
			if err == nil || api.CodeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v", err)
			}
			if left, _ := os.ReadDir(dir + "/kernels"); len(left) > 0 || len(db.refs) > 0 || len(db.kernels) > 0 {
				t.Errorf("%v, %v and %v are left", left, db.refs, db.kernels)
			}
		})
	}
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	m, db, dir := newManager(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := m.Import(ctx, "k", bytes.NewReader(kernelDeb(t, kernelFiles())), func(api.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir + "/kernels"); len(left) > 0 || len(db.refs) > 0 || len(db.kernels) > 0 {
		t.Errorf("%v, %v and %v are left", left, db.refs, db.kernels)
	}
}

func TestBoot(t *testing.T) {
	m, _, _ := newManager(t)
	k, err := m.Import(t.Context(), "mine", bytes.NewReader(kernelDeb(t, kernelFiles())), noReport)
	if err != nil {
		t.Fatal(err)
	}
	config := m.Config
	config.Agent = nil
	if _, err := New(config).Boot(t.Context(), ""); err == nil || api.CodeOf(err) != api.CodeInternal {
		t.Errorf("without an agent: got %v", err)
	}
	var last Boot
	for i := range keptInitramfs + 2 {
		config.Agent = fmt.Appendf(nil, "agent %d", i)
		if last, err = New(config).Boot(t.Context(), "mine"); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(time.Duration(i-100) * time.Minute)
		if err := os.Chtimes(last.Initramfs, old, old); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(m.Dirs.Path(k.Dir), "initramfs-*"))
	if err != nil || len(left) != keptInitramfs || !slices.Contains(left, last.Initramfs) {
		t.Errorf("left are %q, %v", left, err)
	}
	initramfs, err := os.ReadFile(last.Initramfs)
	if err != nil || !bytes.Contains(initramfs, []byte(consoleNode)) {
		t.Errorf("no console in it: %v", err)
	}
	names := archiveNames(t, initramfs[bytes.Index(initramfs, []byte("TRAILER!!!"))+len("TRAILER!!!\x00")+3:])
	if want := []string{"dev", "proc", "sys", "newroot", "dev/console", "init"}; !slices.Equal(names, want) {
		t.Errorf("the second archive holds %q, want %q", names, want)
	}
}
