package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"banger/api"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/resource"
	"banger/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// raw runs statements behind the store's back.
func raw(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expect checks the code, that the message is one line with the words, and that
// the hint has its words.
func expect(t *testing.T, err error, code api.Code, words, hint string) {
	t.Helper()
	e := api.AsError(err)
	if e == nil {
		t.Fatalf("no error, want %s", code)
	}
	if e.Code != code || !strings.Contains(e.Message, words) || !strings.Contains(e.Hint, hint) || strings.Contains(e.Message, "\n") {
		t.Errorf("got %s %q (hint %q), want %s with %q (hint with %q) on one line", e.Code, e.Message, e.Hint, code, words, hint)
	}
}

func testImage(name string) image.Image {
	return image.Image{
		ID: "sha256:" + name, Name: name, Created: time.Unix(1, 2), Entries: 3,
		Layers: []image.Layer{{Digest: "base", Dir: "layers/base", Size: 4}, {Digest: name, Dir: "layers/" + name, Size: 5}},
	}
}

func testKernel(name string, created int64) kernel.Kernel {
	return kernel.Kernel{Name: name, Release: "6.1", Source: "test", Dir: "kernels/" + name, Created: time.Unix(created, 0), Size: 6}
}

func testVM(name string) vm.Record {
	return vm.Record{ID: "id-" + name, Name: name, Image: "i", ImageID: "sha256:i", Kernel: "k", RootDisk: "dm-snapshot", VMM: "qemu", Wanted: "stopped", Created: time.Unix(7, 8)}
}

// filled is a database with the image i, the kernel k and the VM v.
func filled(t *testing.T, path string) *DB {
	t.Helper()
	db := open(t, path)
	must(t, db.InsertImage(t.Context(), testImage("i"), false))
	must(t, db.InsertKernel(t.Context(), testKernel("k", 1)))
	must(t, db.InsertVM(t.Context(), testVM("v")))
	return db
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a ?#%.db") // a name that has to be escaped
	must(t, filled(t, path).Close())
	db := open(t, path)
	images, err := db.Images(t.Context())
	must(t, err)
	kernels, err := db.Kernels(t.Context())
	must(t, err)
	vms, err := db.VMs(t.Context())
	must(t, err)
	if len(images) != 1 || len(kernels) != 1 || len(vms) != 1 {
		t.Fatalf("got %v, %v, %v", images, kernels, vms)
	}
	if want := testVM("v"); vms[0] != want {
		t.Errorf("got %+v, want %+v", vms[0], want)
	}
	if time.Since(images[0].Used) > time.Hour {
		t.Errorf("a VM has been made of it, and it was used %v", images[0].Used)
	}
	images[0].Used = time.Time{}
	if got, want := fmt.Sprint(images[0]), fmt.Sprint(testImage("i")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if want := testKernel("k", 1); !kernels[0].Default || kernels[0].Dir != want.Dir || kernels[0].Created != want.Created {
		t.Errorf("got %+v, want %+v as the default", kernels[0], want)
	}
}

// TestMigrateFromFirst makes a database as the first schema had it and opens it
// with all of today's migrations.
func TestMigrateFromFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	first, err := migrations.ReadFile("migrations/00001_first.sql")
	must(t, err)
	up, _, found := strings.Cut(string(first), "-- +goose Down")
	if !found {
		t.Fatal("the first migration has no way down")
	}
	raw(t, path, up,
		`CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL,
			is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')))`,
		`INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1), (1, 1)`,
		`INSERT INTO kernel VALUES ('old', '5.10', 'test', 'kernels/old', 1, 9, 10)`,
		`INSERT INTO vm VALUES ('0123', 0, 'api', 'debian', 'sha256:1', 'old', 1, 2, 3, 0, 'stopped', 's', 'm', 4, '')`)
	for range 2 {
		db := open(t, path)
		kernels, err := db.Kernels(t.Context())
		must(t, err)
		if len(kernels) != 1 || kernels[0].Name != "old" || !kernels[0].Default {
			t.Errorf("the old row came out as %+v", kernels)
		}
		if vms, err := db.VMs(t.Context()); err != nil || len(vms) != 1 || vms[0].Name != "api" || vms[0].IP.IsValid() {
			t.Errorf("VMs %+v, %v", vms, err)
		}
		must(t, db.Close())
	}
}

func TestNewerIsRefusedAndUntouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	must(t, filled(t, path).Close())
	raw(t, path, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (4711, 1)`)
	before, err := os.ReadFile(path)
	must(t, err)
	_, err = Open(t.Context(), path)
	expect(t, err, api.CodeUnsupported, "version 4711", "newer banger")
	after, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the database was changed")
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left beside it: %v, %v", entries, err)
	}
}

func TestTakenNames(t *testing.T) {
	db := filled(t, filepath.Join(t.TempDir(), "banger.db"))
	ctx := t.Context()
	expect(t, db.InsertImage(ctx, testImage("i"), false), api.CodeAlreadyExists, `import image "i"`, "banger image rm i")
	expect(t, db.InsertKernel(ctx, testKernel("k", 2)), api.CodeAlreadyExists, `import kernel "k"`, "banger kernel rm k")
	again := testVM("v")
	again.ID = "another"
	expect(t, db.InsertVM(ctx, again), api.CodeAlreadyExists, `create VM "v"`, "banger vm delete v")

	// The same name is another user's to take, and shares the layers.
	theirs := testImage("i")
	theirs.Owner = 1000
	must(t, db.InsertImage(ctx, theirs, false))
	if layers, err := db.Layers(ctx); err != nil || len(layers) != 2 {
		t.Errorf("layers %v, %v", layers, err)
	}
}

func TestTakenAddresses(t *testing.T) {
	db := filled(t, filepath.Join(t.TempDir(), "banger.db"))
	ctx := t.Context()
	first, second := testVM("first"), testVM("second")
	first.IP, first.MAC = netip.MustParseAddr("10.0.0.2"), "02:00:00:00:00:02"
	second.IP = first.IP
	must(t, db.InsertVM(ctx, first))
	expect(t, db.InsertVM(ctx, second), api.CodeConflict, "has the address 10.0.0.2", "try again")
	second.IP, second.MAC = netip.MustParseAddr("10.0.0.3"), first.MAC
	expect(t, db.InsertVM(ctx, second), api.CodeConflict, "02:00:00:00:00:02", "try again")
	second.MAC = ""
	must(t, db.InsertVM(ctx, second))
	must(t, db.InsertVM(ctx, testVM("third"))) // none has no address, as v has none
	second.IP = first.IP
	expect(t, db.UpdateVM(ctx, second), api.CodeConflict, `change VM "second"`, "try again")
	second.IP, second.Name = netip.Addr{}, "first"
	expect(t, db.UpdateVM(ctx, second), api.CodeAlreadyExists, `rename to "first"`, "banger vm list")
	second.Name = "renamed"
	must(t, db.UpdateVM(ctx, second))
	vms, err := db.VMs(ctx)
	must(t, err)
	if !slices.Contains(vms, first) || !slices.Contains(vms, second) {
		t.Errorf("got %+v, want %+v and %+v among them", vms, first, second)
	}
}

func TestSettings(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "banger.db"))
	ctx := t.Context()
	if v, found, err := db.Setting(ctx, "subnet"); v != "" || found || err != nil {
		t.Errorf("before: %q, %v, %v", v, found, err)
	}
	for _, want := range []string{"a", "", "b"} {
		must(t, db.PutSetting(ctx, "subnet", want))
		if v, found, err := db.Setting(ctx, "subnet"); v != want || !found || err != nil {
			t.Errorf("got %q, %v, %v; want %q", v, found, err, want)
		}
	}
	for _, key := range []string{"ssh-ed25519 b", "ssh-ed25519 a", "ssh-ed25519 b"} {
		must(t, db.AddSSHKey(ctx, 7, key))
	}
	must(t, db.AddSSHKey(ctx, 8, "ssh-ed25519 c"))
	if keys, err := db.SSHKeys(ctx, 7); err != nil || !slices.Equal(keys, []string{"ssh-ed25519 a", "ssh-ed25519 b"}) {
		t.Errorf("keys %q, %v", keys, err)
	}
	// The last ones of a user are kept, and nobody else's go for them.
	var last []string
	for i := range 40 {
		key := fmt.Sprintf("ssh-ed25519 key%02d", i)
		must(t, db.AddSSHKey(ctx, 7, key))
		if i >= 24 {
			last = append(last, key)
		}
	}
	if keys, err := db.SSHKeys(ctx, 7); err != nil || !slices.Equal(keys, last) {
		t.Errorf("keys %q, %v, want %q", keys, err, last)
	}
	if keys, err := db.SSHKeys(ctx, 8); err != nil || len(keys) != 1 {
		t.Errorf("another user's keys %q, %v", keys, err)
	}
}

func TestRemoval(t *testing.T) {
	db := filled(t, filepath.Join(t.TempDir(), "banger.db"))
	ctx := t.Context()
	must(t, db.InsertVM(ctx, testVM("w")))
	remove := func(owner uint32, name string) error {
		_, err := db.DeleteImage(ctx, owner, name, nil)
		return err
	}
	expect(t, remove(0, "i"), api.CodeConflict, `remove image "i": used by VM v, w`, "banger vm delete v w")
	expect(t, db.DeleteKernel(ctx, "k"), api.CodeConflict, `remove kernel "k": used by VM v, w`, "banger vm delete v w")
	expect(t, remove(0, "none"), api.CodeNotFound, `remove image "none"`, "banger image list")
	expect(t, remove(1000, "i"), api.CodeNotFound, `remove image "i"`, "banger image list")
	expect(t, db.DeleteKernel(ctx, "none"), api.CodeNotFound, `remove kernel "none"`, "banger kernel list")

	// A second name for the same image lets the first one go.
	alias := testImage("i")
	alias.Name = "alias"
	must(t, db.InsertImage(ctx, alias, false))
	must(t, remove(0, "alias"))
	must(t, db.InsertImage(ctx, alias, false))
	must(t, remove(0, "i"))
	expect(t, remove(0, "alias"), api.CodeConflict, "used by VM v, w", "")

	for _, id := range []string{"id-v", "id-w"} {
		must(t, db.DeleteVM(ctx, id))
	}
	must(t, db.InsertImage(ctx, testImage("j"), false)) // shares the layer base
	orphans, err := db.DeleteImage(ctx, 0, "alias", nil)
	if err != nil || len(orphans) != 1 || orphans[0].Digest != "i" {
		t.Errorf("orphans %v, %v; want the layer i", orphans, err)
	}
	orphans, err = db.DeleteImage(ctx, 0, "j", nil)
	if err != nil || len(orphans) != 2 {
		t.Errorf("orphans %v, %v; want both layers of j", orphans, err)
	}
}

func TestDefaultKernel(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "banger.db"))
	for i, name := range []string{"a", "b", "c"} {
		must(t, db.InsertKernel(t.Context(), testKernel(name, int64(i+1))))
	}
	for _, step := range []struct{ remove, want string }{{"b", "a"}, {"a", "c"}, {"c", ""}} {
		must(t, db.DeleteKernel(t.Context(), step.remove))
		kernels, err := db.Kernels(t.Context())
		must(t, err)
		got := ""
		for _, k := range kernels {
			if k.Default {
				got += k.Name
			}
		}
		if got != step.want {
			t.Errorf("after %s was removed the default is %q, want %q", step.remove, got, step.want)
		}
	}
}

// TestDiskFull fills a small file system through the database, and uses it on.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1M"))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "banger.db")
	db, err := Open(t.Context(), path)
	must(t, err)
	defer db.Close()
	must(t, db.InsertKernel(t.Context(), testKernel("k", 1)))
	big := strings.Repeat("x", 8<<10)
	kept := 0
	for i := 0; ; i++ {
		img := testImage(fmt.Sprint("n", i))
		img.ID = big
		if err = db.InsertImage(t.Context(), img, false); err != nil {
			break
		}
		kept++
	}
	expect(t, err, api.CodeNoSpace, "write database: ", "free space")
	_, err = db.InsertResource(t.Context(), resource.Ref{ID: "r", State: "held", Spec: []byte(`"` + strings.Repeat(big, 8) + `"`)}) // what an image left free is too little for it
	expect(t, err, api.CodeNoSpace, "write database: ", "free space")
	if images, err := db.Images(t.Context()); err != nil || len(images) != kept {
		t.Errorf("%d images, %v; want the %d that were stored", len(images), err, kept)
	}
	must(t, db.Close())
	again, err := Open(t.Context(), path)
	must(t, err)
	defer again.Close()
	if images, err := again.Images(t.Context()); err != nil || len(images) != kept {
		t.Errorf("opened again: %d images, %v; want %d", len(images), err, kept)
	}
}

func TestNoSpaceToBegin(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16K"))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	_, err := Open(t.Context(), filepath.Join(dir, "banger.db"))
	expect(t, err, api.CodeNoSpace, "open database ", "free space")
}

func TestCancelled(t *testing.T) {
	db := filled(t, filepath.Join(t.TempDir(), "banger.db"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.InsertImage(ctx, testImage("j"), false); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line", err)
	}
	must(t, db.InsertImage(t.Context(), testImage("j"), false)) // no transaction is left open
}

// Nobody but root may read the keys of VMs, also where the file is older than that rule.
func TestPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	for range 2 {
		db, err := Open(t.Context(), path)
		must(t, err)
		files, err := filepath.Glob(path + "*")
		must(t, err)
		for _, file := range files {
			info, err := os.Stat(file)
			must(t, err)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", filepath.Base(file), info.Mode())
			}
		}
		must(t, db.Close())
		must(t, os.Chmod(path, 0o644))
	}
}
