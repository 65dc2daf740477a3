package vm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"

	"banger/api"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/resource"
	"banger/internal/store"
	"banger/internal/vm"
)

// assets is what the VMs of a world are made of.
func (w *world) assets(db *store.DB, dirs *resource.Dir) vm.Assets {
	if !w.whole {
		return noAssets{w.lacking, w.state}
	}
	w.images = image.New(image.Config{Ledger: w.ledger, Dirs: dirs, Store: db})
	w.kernels = kernel.New(kernel.Config{Ledger: w.ledger, Dirs: dirs, Store: db, Agent: []byte("the agent")})
	return realAssets{w.images, w.kernels}
}

// noAssets implements vm.Assets with files that nobody reads.
type noAssets struct {
	lacking error
	state   string
}

// assetFiles are what noAssets has.
var assetFiles = []string{"layer.ext4", "vmlinux", "initramfs", "modules.ext4"}

func (a noAssets) file(name string) string { return filepath.Join(a.state, "assets", name) }

func (noAssets) Image(context.Context, uint32, string) (string, error) { return "sha256:debian", nil }

func (noAssets) RunConfig(context.Context, string) (api.ImageConfig, error) {
	return api.ImageConfig{ExposedPorts: []string{"80/tcp"}}, nil
}

func (a noAssets) Disks(context.Context, string) ([]string, error) {
	return []string{a.file("layer.ext4")}, a.lacking
}

func (a noAssets) Base(context.Context, string) (vm.Base, error) {
	base := vm.Base{Dir: "bases", Content: 1 << 20, Entries: 100}
	found, err := filepath.Glob(filepath.Join(a.state, base.Dir, "base-*.ext4"))
	if len(found) > 0 {
		base.File = base.Dir + "/" + filepath.Base(found[0])
	}
	return base, errors.Join(a.lacking, err)
}

func (a noAssets) Bases() ([]string, error) {
	base, err := a.Base(context.Background(), "")
	if base.File == "" {
		return nil, err
	}
	return []string{base.File}, err
}

func (noAssets) ImageFree(context.Context, uint32, string) error { return nil }

func (noAssets) Stackable(context.Context, string) (bool, error) { return true, nil }

func (noAssets) Commit(_ context.Context, _ uint32, _, _ string, _ bool, tar io.Reader, _ api.Reporter) error {
	text, err := io.ReadAll(io.LimitReader(tar, 1<<20))
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("import image: it is empty")
	}
	return err
}

func (noAssets) Kernel(context.Context, string) (string, error) { return "linux", nil }

func (a noAssets) Boot(context.Context, string) (vm.Boot, error) {
	return vm.Boot{Vmlinux: a.file("vmlinux"), Initramfs: a.file("initramfs"), Modules: a.file("modules.ext4")}, a.lacking
}

// realAssets implements vm.Assets by the real images and kernels.
type realAssets struct {
	images  *image.Manager
	kernels *kernel.Manager
}

func (a realAssets) Image(ctx context.Context, uid uint32, name string) (string, error) {
	img, err := a.images.ForVM(ctx, uid, name)
	return img.ID, err
}

func (a realAssets) RunConfig(ctx context.Context, id string) (api.ImageConfig, error) {
	return a.images.RunConfig(ctx, id)
}

func (a realAssets) Disks(ctx context.Context, id string) ([]string, error) {
	return a.images.Disks(ctx, id)
}

func (a realAssets) Base(ctx context.Context, id string) (vm.Base, error) {
	b, err := a.images.Base(ctx, id)
	return vm.Base(b), err
}

func (a realAssets) Bases() ([]string, error) { return a.images.Bases() }

func (a realAssets) ImageFree(ctx context.Context, uid uint32, name string) error {
	return a.images.Free(ctx, uid, name)
}

func (a realAssets) Stackable(ctx context.Context, id string) (bool, error) {
	return a.images.Stackable(ctx, id)
}

func (a realAssets) Commit(ctx context.Context, uid uint32, name, base string, whole bool, tar io.Reader, report api.Reporter) error {
	_, err := a.images.Commit(ctx, uid, name, base, whole, tar, report)
	return err
}

func (a realAssets) Kernel(ctx context.Context, name string) (string, error) {
	k, err := a.kernels.Get(ctx, name)
	return k.Name, err
}

func (a realAssets) Boot(ctx context.Context, name string) (vm.Boot, error) {
	b, err := a.kernels.Boot(ctx, name)
	return vm.Boot{Vmlinux: b.Vmlinux, Initramfs: b.Initramfs, Modules: b.Modules}, err
}

// tarOf is a tar archive of files.
func tarOf(files map[string]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}) // into memory
		_, _ = io.WriteString(w, content)
	}
	_ = w.Close()
	return b.Bytes()
}

// kernelDeb is a Debian package with all of a kernel that matters; deb(5).
func kernelDeb() []byte {
	const lib = "./lib/modules/6.1-test/"
	data := tarOf(map[string]string{
		"./boot/vmlinuz-6.1-test": "\x7fELF kernel", lib + "modules.order": "", lib + "modules.builtin.modinfo": "",
		lib + "modules.builtin": "virtio_ring.ko\nvirtio.ko\nvirtio_mmio.ko\nvirtio_blk.ko\nvirtio_console.ko\next4.ko\noverlay.ko\n",
	})
	return append([]byte("!<arch>\n"+fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", "data.tar", 0, 0, 0, "100644", len(data))), data...)
}

// packageManager writes an apt-get and an apt-cache into dir, which offer a kernel.
func packageManager(dir string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "kernel.deb"), kernelDeb(), 0o600),
		os.WriteFile(filepath.Join(dir, "apt-cache"), []byte(`#!/bin/sh
case $* in
  "depends linux-image-cloud-amd64") echo "  Depends: linux-image-6.1-test" ;;
  show*) echo "Version: 1" ;;
esac
`), 0o700),
		os.WriteFile(filepath.Join(dir, "apt-get"), []byte("#!/bin/sh\nexec cp "+filepath.Join(dir, "kernel.deb")+" .\n"), 0o700),
	)
}

// seed makes what whole worlds begin with: a state directory with an image, a kernel
// and nothing else, and beside it a package manager. It returns where they are.
func seed(t tester) string {
	t.Helper()
	dir := memoryDir(t)
	state := filepath.Join(dir, "state")
	err := errors.Join(packageManager(dir), os.Mkdir(state, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	w := &world{t: t, whole: true, state: state, log: &logBuffer{}}
	w.db = w.open()
	dirs := resource.NewDir(vm.KindDir, state, false, "layers", "kernels")
	w.ledger = resource.New(w.db, "", w.logger(), dirs)
	w.assets(w.db, dirs)
	_, err = w.images.Import(ctx, 0, "debian", bytes.NewReader(tarOf(map[string]string{"bin/true": "true"})), nil)
	if err == nil {
		_, err = w.kernels.Import(ctx, "linux", bytes.NewReader(kernelDeb()), func(api.Progress) {})
	}
	if err = errors.Join(err, w.db.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// worlds counts the whole ones, which share the host's network.
var worlds atomic.Uint32

// newWholeWorld is newWorld with images, kernels and a network that are real, as in seed.
func newWholeWorld(t tester, seed string) *world {
	t.Helper()
	w := emptyWorld(t)
	w.whole = true
	n := worlds.Add(1)
	w.subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 4), byte(n << 4), 0}), 20)
	w.sow(seed)
	return w
}

// sow copies a seed into the state directory.
func (w *world) sow(seed string) {
	w.t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", filepath.Join(seed, "state")+"/.", w.state).CombinedOutput(); err != nil {
		w.t.Fatalf("copy the seed: %v: %s", err, out)
	}
}
