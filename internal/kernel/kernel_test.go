package kernel

import (
	"bytes"
	"context"
	"debug/elf"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"banger/api"
	"banger/internal/guest/wire"
	"banger/internal/resource"

	"github.com/cavaliergopher/cpio"
)

// memory is a Store, and a resource.Store, without a disk.
type memory struct {
	mu      sync.Mutex
	kernels []Kernel
	refs    []resource.Ref
}

func (m *memory) InsertKernel(_ context.Context, k Kernel) error {
	k.Default = len(m.kernels) == 0
	m.kernels = append(m.kernels, k)
	return nil
}
func (m *memory) Kernels(context.Context) ([]Kernel, error) { return m.kernels, nil }
func (m *memory) SetDefaultKernel(_ context.Context, name string) error {
	for i := range m.kernels {
		m.kernels[i].Default = m.kernels[i].Name == name
	}
	return nil
}
func (m *memory) DeleteKernel(_ context.Context, name string) error {
	m.kernels = slices.DeleteFunc(m.kernels, func(k Kernel) bool { return k.Name == name })
	return nil
}
func (m *memory) InsertResource(_ context.Context, r resource.Ref) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refs = append(m.refs, r)
	return int64(len(m.refs)), nil
}
func (m *memory) UpdateResource(context.Context, resource.Ref) error { return nil }
func (m *memory) DeleteResource(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refs = slices.DeleteFunc(m.refs, func(r resource.Ref) bool { return r.ID == id })
	return nil
}
func (m *memory) Resources(_ context.Context, owner string) ([]resource.Ref, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.refs), func(r resource.Ref) bool { return owner != "" && r.Owner != owner }), nil
}

func newManager(t *testing.T) (*Manager, *memory, string) {
	t.Helper()
	dir, db := t.TempDir(), &memory{}
	return manage(dir, db), db, dir
}

// manage returns the Manager of a state directory.
func manage(dir string, db *memory) *Manager {
	dirs := resource.NewDir("dir", dir, false, "kernels")
	ledger := resource.New(db, "boot", slog.New(slog.DiscardHandler), dirs)
	return New(Config{Ledger: ledger, Dirs: dirs, Store: db, Agent: []byte("the agent")})
}

func TestPull(t *testing.T) {
	for _, tool := range []string{"apt-get", "depmod"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no kernel to pull here: ", err)
		}
	}
	m, db, dir := newManager(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	var downloads atomic.Int32
	pulled := make([]Kernel, 3)
	for i := range pulled {
		wg.Go(func() {
			var err error
			pulled[i], err = m.Pull(ctx, func(p api.Progress) {
				if strings.HasPrefix(p.Step, "download") {
					downloads.Add(1)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	k := pulled[0]
	if t.Failed() || downloads.Load() != 1 || pulled[1].Dir != k.Dir || pulled[2].Dir != k.Dir {
		t.Fatalf("%d downloads gave %+v", downloads.Load(), pulled)
	}
	if again, err := m.Pull(ctx, func(api.Progress) {}); err != nil || again.Dir != k.Dir {
		t.Errorf("a second pull gave %+v, %v", again, err)
	}
	boot, err := m.Boot(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	modprobes(t, boot.Modules, k.Release, map[string]string{"overlay": "/overlay.ko", "virtio:d00000001v00001AF4": "/virtio_net.ko", "virtio_net": "/net_failover.ko"})
	if _, err := elf.Open(boot.Vmlinux); err != nil {
		t.Error("vmlinux:", err)
	}
	initramfs, err := os.ReadFile(boot.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	names := archiveNames(t, initramfs)
	for _, name := range []string{"virtio.ko", "virtio_mmio.ko", "virtio_blk.ko", "virtio_console.ko", "overlay.ko"} {
		if !slices.Contains(names, strings.TrimPrefix(wire.ModulesDir, "/")+"/"+name) {
			t.Errorf("the initramfs lacks %s: %q", name, names)
		}
	}
	if !bytes.Contains(initramfs, []byte("the agent")) {
		t.Error("the initramfs lacks the agent")
	}
	if err := m.Remove(ctx, k.Name); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir + "/kernels"); len(left) > 0 || len(db.refs) > 0 {
		t.Errorf("after the removal %v and %v are left", left, db.refs)
	}
}

func archiveNames(t *testing.T, archive []byte) (names []string) {
	t.Helper()
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err != nil {
			return names
		}
		names = append(names, h.Name)
	}
}

func TestBadPackagesLeaveNothing(t *testing.T) {
	ar := "!<arch>\n"
	member := func(name, size string) string {
		return ar + name + strings.Repeat(" ", 48-len(name)) + size + strings.Repeat(" ", 10-len(size)) + "`\n"
	}
	for name, input := range map[string]string{
		"empty":              "",
		"not a package":      "hello, this is text",
		"no members":         ar,
		"truncated member":   member("debian-binary", "4000"),
		"a size below zero":  member("data.tar", "-5"),
		"an empty data.tar":  member("data.tar", "0"),
		"rubbish in the tar": member("data.tar", "600") + strings.Repeat("x", 600),
		"not xz":             member("data.tar.xz", "9") + "not an xz",
	} {
		t.Run(name, func(t *testing.T) {
			m, db, dir := newManager(t)
			_, err := m.Import(t.Context(), "k", strings.NewReader(input), func(api.Progress) {})
			if api.CodeOf(err) != api.CodeInvalid {
				t.Errorf("got %v", err)
			}
			if left, _ := os.ReadDir(dir + "/kernels"); len(left) > 0 || len(db.refs) > 0 {
				t.Errorf("%v and %v are left", left, db.refs)
			}
		})
	}
}

func FuzzVmlinux(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, image []byte) {
		if out, err := extractVmlinux(image); err == nil && !bytes.HasPrefix(out, []byte("\x7fELF")) {
			t.Error("accepted what is no ELF file")
		}
	})
}
