package usage_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/resource"
	"banger/internal/space"
	"banger/internal/store"
	"banger/internal/usage"
)

const user, stranger = 1000, 1001

// vms are those that there are.
type vms []api.VM

func (v vms) List(_ context.Context, caller uint32) ([]api.VM, error) {
	return slices.DeleteFunc(slices.Clone(v), func(m api.VM) bool { return caller != 0 && caller != m.Owner }), nil
}

// installation has, in real files: the images one and same of root's, which are one
// layer, yours of user's, of which there is a VM, and theirs of stranger's; the kernels
// old, which is the default one, and new, each with an initramfs of another version;
// two caches; and something that was set aside.
type installation struct {
	*usage.Service
	state  string
	db     *store.DB
	ledger *resource.Ledger
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	i := &installation{state: t.TempDir()}
	var err error
	if i.db, err = store.Open(t.Context(), filepath.Join(i.state, "banger.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.db.Close() })
	dirs := resource.NewDir("dir", i.state, false, "vms", "layers", "kernels")
	uppers, works := disk.New(disk.KindUpper, i.state), disk.New(disk.KindWork, i.state)
	i.ledger = resource.New(i.db, "boot", slog.New(slog.DiscardHandler), dirs, uppers, works)
	images := image.New(image.Config{Ledger: i.ledger, Dirs: dirs, Store: i.db})
	kernels := kernel.New(kernel.Config{Ledger: i.ledger, Dirs: dirs, Store: i.db, Agent: []byte("agent")})

	for _, img := range []struct {
		name    string
		owner   uint32
		archive []byte
	}{{"one", 0, archive(t, "a")}, {"same", 0, archive(t, "a")}, {"yours", user, archive(t, "b")}, {"theirs", stranger, archive(t, "c")}} {
		if _, err := images.Import(t.Context(), img.owner, img.name, bytes.NewReader(img.archive), nil); err != nil {
			t.Fatal(err)
		}
	}
	yours, err := images.Get(t.Context(), user, "yours")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"old", "new"} {
		dir := "kernels/" + name
		i.acquire(t, "kernel/"+name, "dir", dir, nil)
		i.write(t, dir+"/vmlinux", 1<<20)
		i.write(t, dir+"/initramfs-000000000000.cpio", 2<<20)
		if err := i.db.InsertKernel(t.Context(), kernel.Kernel{Name: name, Dir: dir, Created: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if _, err := kernels.Stale(kernel.Kernel{Dir: dir}); err != nil {
			t.Fatal(err)
		}
	}
	vm := api.VM{ID: "0123456789ab", Name: "m", Owner: user, State: api.VMStopped, ImageID: yours.ID, Kernel: "old"}
	i.acquire(t, "vm/"+vm.ID, "dir", "vms/"+vm.ID, nil)
	for kind, disks := range map[string]*disk.Disks{disk.KindUpper: uppers, disk.KindWork: works} {
		i.acquire(t, "vm/"+vm.ID, kind, disks.Name("vms/"+vm.ID), disk.Spec{Size: 64 << 20})
	}
	i.write(t, "vms/"+vm.ID+"/console.log", 5000)
	i.write(t, "lost-1/vms/x/work-1.ext4", 1<<20)
	i.Service = usage.New(usage.Config{StateDir: i.state, Room: space.Room{Dir: i.state, Reserve: 1 << 20},
		Images: images, Kernels: kernels, VMs: vms{vm}, Caches: []usage.Cache{uppers, works}})
	return i
}

// archive is one of a file with noise, which differs by name alone.
func archive(t *testing.T, name string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (i *installation) acquire(t *testing.T, owner, kind, name string, spec any) resource.Ref {
	t.Helper()
	ref, err := i.ledger.Acquire(t.Context(), owner, kind, name, spec)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (i *installation) write(t *testing.T, name string, size int) {
	t.Helper()
	path := filepath.Join(i.state, name)
	noise := make([]byte, size)
	rand.Read(noise)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, noise, 0o600); err != nil {
		t.Fatal(err)
	}
}

// du is what du(1) says of the state directory.
func (i *installation) du(t *testing.T, options ...string) int64 {
	t.Helper()
	out, err := exec.Command("du", append(options, "-s", "--block-size=1", i.state)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(out), "\t")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (i *installation) usage(t *testing.T, caller uint32) api.DiskUsage {
	t.Helper()
	u, err := i.DiskUsage(t.Context(), caller)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestDiskUsageIsThatOfDu(t *testing.T) {
	i := newInstallation(t)
	i.write(t, "of-nobody", 9000)
	if err := os.Link(filepath.Join(i.state, "of-nobody"), filepath.Join(i.state, "vms/0123456789ab/link")); err != nil {
		t.Fatal(err)
	}
	i.write(t, "vms/0123456789ab/vm.json.lost-20260101T000000", 9000)
	u := i.usage(t, 0)
	if du := i.du(t); u.Total != du {
		t.Errorf("the total is %d, du says %d", u.Total, du)
	}
	sum := u.Other
	for _, l := range u.Layers {
		sum += l.Size
	}
	for _, v := range u.VMs {
		sum += v.Size
		if v.Root == 0 || v.Work == 0 || v.Logs < 5000 || v.Root > 32<<20 {
			t.Errorf("VM %+v", v)
		}
	}
	for _, k := range u.Kernels {
		sum += k.Size
		if k.Stale != 2<<20 || k.Size < 3<<20 || k.Used != (k.Name == "old") {
			t.Errorf("kernel %+v", k)
		}
	}
	for _, f := range slices.Concat(u.Caches, u.Lost) {
		sum += f.Size
	}
	if sum != u.Total {
		t.Errorf("the parts are %d, the total is %d", sum, u.Total)
	}
	if len(u.Caches) != 2 || len(u.Lost) != 2 || u.Lost[0].Size < 1<<20 || u.Lost[1].Size < 9000 || u.Available == 0 || u.Reserve != 1<<20 {
		t.Errorf("%+v", u)
	}
}

func TestSharedLayersAreCountedOnce(t *testing.T) {
	u := newInstallation(t).usage(t, 0)
	var got []string
	for _, i := range u.Images {
		got = append(got, fmt.Sprint(i.Name, " shared ", i.Shared == i.Size && i.Size > 1<<20, " used ", i.Used))
	}
	want := []string{"one shared true used false", "same shared true used false", "yours shared false used true", "theirs shared false used false"}
	if !slices.Equal(got, want) || len(u.Layers) != 3 || !slices.Equal(u.Layers[0].Images, []string{"one", "same"}) {
		t.Errorf("%q, layers %+v", got, u.Layers)
	}
}

func TestUsersSeeWhatIsTheirs(t *testing.T) {
	u := newInstallation(t).usage(t, stranger)
	var images []string
	for _, i := range u.Images {
		images = append(images, i.Name)
	}
	if want := []string{"one", "same", "theirs"}; !slices.Equal(images, want) {
		t.Errorf("images %q, want %q", images, want)
	}
	if len(u.VMs)+len(u.Caches)+len(u.Lost) != 0 || u.Other != 0 || u.Total == 0 {
		t.Errorf("%+v", u)
	}
}

func TestPrune(t *testing.T) {
	initramfs := []string{"initramfs kernels/old/initramfs-000000000000.cpio", "initramfs kernels/new/initramfs-000000000000.cpio"}
	caches := []string{"cache cache/upper-67108864.ext4", "cache cache/work-67108864.ext4"}
	for name, tc := range map[string]struct {
		caller uint32
		req    api.Prune
		want   []string
	}{
		"root":       {0, api.Prune{}, slices.Concat(initramfs, caches)},
		"root, lost": {0, api.Prune{Lost: true}, slices.Concat(initramfs, caches, []string{"lost lost-1"})},
		"root, all": {0, api.Prune{All: true}, slices.Concat([]string{"image one", "image same", "image theirs@1001"}, initramfs[:1],
			[]string{"kernel new"}, caches)},
		"a user":      {stranger, api.Prune{}, nil},
		"a user, all": {stranger, api.Prune{All: true}, []string{"image theirs"}},
		"in use":      {user, api.Prune{All: true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			const noDatabase = "--exclude=banger.db*" // which grows by what is removed from it
			before, full := tree(t, i.state), i.du(t, noDatabase)
			dry := tc.req
			dry.DryRun = true
			would, err := i.Prune(t.Context(), tc.caller, dry)
			if err != nil || !slices.Equal(tree(t, i.state), before) {
				t.Fatalf("a dry run: %v", err)
			}
			done, err := i.Prune(t.Context(), tc.caller, tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if a, b := text(t, would), text(t, done); a != b {
				t.Errorf("it was to remove %s, and removed %s", a, b)
			}
			var got []string
			for _, item := range done.Items {
				got = append(got, item.Kind+" "+item.Name)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("removed %q, want %q", got, tc.want)
			}
			// Second copies of what stays are written anew.
			if freed := full - i.du(t, noDatabase); freed < done.Size-16<<10 || freed > done.Size {
				t.Errorf("freed %d, by its own word %d", freed, done.Size)
			}
			if again, err := i.Prune(t.Context(), tc.caller, tc.req); err != nil || len(again.Items) != 0 {
				t.Errorf("the second time: %+v, %v", again, err)
			}
		})
	}
}

// A layer that could not be removed with its last image goes; one that is being made
// stays.
func TestPruneLayers(t *testing.T) {
	i := newInstallation(t)
	stuck := i.acquire(t, "layer/stuck", "dir", "layers/stuck", nil)
	i.acquire(t, "layer/coming", "dir", "layers/coming", nil)
	i.write(t, "layers/stuck/layer.ext4", 1<<20)
	stuck.State, stuck.Error = resource.Releasing, "device busy"
	if err := i.db.UpdateResource(t.Context(), stuck); err != nil {
		t.Fatal(err)
	}
	u := i.usage(t, 0)
	if l := u.Layers[len(u.Layers)-1]; l.Dir != "layers/stuck" || l.Digest != "" || l.Size < 1<<20 {
		t.Errorf("%+v", l)
	}
	done, err := i.Prune(t.Context(), 0, api.Prune{})
	if err != nil || done.Items[0].Kind+" "+done.Items[0].Name != "layer layers/stuck" {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, err := os.Stat(filepath.Join(i.state, "layers/stuck")); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(i.state, "layers/coming")); err != nil {
		t.Error(err)
	}
}

func TestPruneLostIsRoots(t *testing.T) {
	if _, err := newInstallation(t).Prune(t.Context(), user, api.Prune{Lost: true}); api.CodeOf(err) != api.CodePermissionDenied {
		t.Errorf("got %v", err)
	}
}

// tree lists the files below dir, with their sizes, but for the database.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	out, err := exec.Command("find", dir, "-not", "-name", "banger.db*", "-printf", "%P %s %T@\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(out), "\n")
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
