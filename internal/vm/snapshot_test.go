package vm_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/disk"
)

// snapshotWorld is a world whose VMs have roots of one block device.
func snapshotWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.root = api.RootDiskSnapshot
	return w
}

// base returns the base of the image; empty where there is none.
func (w *world) base() string {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.state, "bases/base-*.ext4"))
	if err != nil || len(found) > 1 {
		w.t.Errorf("bases %q, %v", found, err)
	}
	return strings.Join(found, "")
}

// table is what the device of a VM's run is made of.
func (w *world) table(id string) string {
	w.t.Helper()
	refs, err := w.db.Resources(context.Background(), "vm/"+id+"/run")
	if err != nil {
		w.t.Fatal(err)
	}
	var tables []string
	for _, r := range refs {
		if r.Kind == disk.KindOrigin || r.Kind == disk.KindSnapshot {
			tables = append(tables, w.mapper.Table(r.Name))
		}
	}
	return strings.Join(tables, "\n")
}

// TestSnapshotRoot has VMs with a root of one block device live through everything.
func TestSnapshotRoot(t *testing.T) {
	w := snapshotWorld(t)
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	size := int64(256 << 20)
	a, b := w.createSized("a", size), w.createSized("b", size)
	must := func(what string, op api.Operation, err error) {
		t.Helper()
		if err := w.wait(op, err); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	do := func(what string, fn func(context.Context, uint32, string) (api.Operation, error), ref string) {
		t.Helper()
		op, err := fn(ctx, 0, ref)
		must(what, op, err)
	}
	opA, err := w.svc.Start(ctx, 0, "a") // both want the base
	opB, errB := w.svc.Start(ctx, 0, "b")
	must("start a", opA, err)
	must("start b", opB, errB)
	base := w.base()
	if info, err := os.Stat(base); err != nil || info.Mode().Perm() != 0o440 {
		t.Errorf("the base: %v, %v", info, err)
	}
	if w.get("a").RootDisk != api.RootDiskSnapshot {
		t.Errorf("shown as %+v", w.get("a"))
	}
	if got := w.table(a.ID); !strings.Contains(got, "524288 snapshot /") || w.table(b.ID) == got {
		t.Errorf("its device is made of:\n%s", got)
	}
	larger := size + 64<<20
	op, err := w.svc.Set(ctx, 0, "a", api.SetVM{RootSize: &larger})
	must("grow while it runs", op, err)
	if got := w.table(a.ID); !strings.Contains(got, "655360 snapshot /") {
		t.Errorf("grown, its device is made of:\n%s", got)
	}
	w.down()
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	if got := w.get("a"); got.State != api.VMRunning {
		t.Errorf("after a restart of the daemon it is %s: %s", got.State, got.LastError)
	}
	larger += 64 << 20
	op, err = w.svc.Set(ctx, 0, "a", api.SetVM{RootSize: &larger})
	must("grow what was adopted", op, err)
	smaller := size
	op, err = w.svc.Set(ctx, 0, "a", api.SetVM{RootSize: &smaller})
	if err := w.wait(op, err); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "shrink") {
		t.Errorf("shrink: %v", err)
	}
	knows := w.machines.known(a.ID)
	do("suspend", w.svc.Suspend, "a")
	if got := w.table(a.ID); got != "" {
		t.Errorf("suspended, it has devices:\n%s", got)
	}
	do("wake", w.svc.Start, "a")
	if got := w.table(a.ID); !strings.Contains(got, "786432 snapshot /") || w.machines.known(a.ID) != knows {
		t.Errorf("woken, it knows %q, and its device is made of:\n%s", w.machines.known(a.ID), got)
	}
	do("kill", w.svc.Kill, "a")
	larger += 64 << 20
	op, err = w.svc.Set(ctx, 0, "a", api.SetVM{RootSize: &larger})
	must("grow while it is stopped", op, err)
	op, err = w.svc.Promote(ctx, 0, "a", "image")
	must("promote", op, err)
	do("reset", w.svc.Reset, "a")
	do("start", w.svc.Start, "a")
	if got := w.table(a.ID); !strings.Contains(got, "917504 snapshot /") {
		t.Errorf("after a reset its device is made of:\n%s", got)
	}
	if w.base() != base {
		t.Errorf("the base %s became %s", base, w.base())
	}
	prune := func() int { // what nobody needs of bases
		t.Helper()
		items, err := w.svc.Cache()
		if err != nil {
			t.Error(err)
		}
		for _, item := range items {
			if err := item.Remove(ctx); err != nil {
				t.Error(err)
			}
		}
		return len(items)
	}
	if n := prune(); n != 0 || w.base() != base {
		t.Errorf("%d bases can go that VMs have", n)
	}
	w.clear()
	items, err := w.svc.Cache()
	if err != nil || len(items) != 1 {
		t.Fatalf("%d bases can go without VMs, %v", len(items), err)
	}
	w.createSized("c", size) // between the look and the removal
	if err := items[0].Remove(ctx); err != nil || w.base() != base {
		t.Errorf("the base of a VM that came meanwhile: %q, %v", w.base(), err)
	}
	w.clear()
	if n := prune(); n != 1 || w.base() != "" {
		t.Errorf("%d bases have gone, left is %q", n, w.base())
	}
	w.down()
}

// createSized makes a VM with a root of size bytes that is not started.
func (w *world) createSized(name string, size int64) api.VM {
	w.t.Helper()
	v, op, err := w.svc.Create(context.Background(), 0, api.CreateVM{Name: name, RootSize: size})
	if err := w.wait(op, err); err != nil {
		w.t.Fatal(err)
	}
	return v
}

// TestSnapshotRootRefused asks for what cannot be had.
func TestSnapshotRootRefused(t *testing.T) {
	w := snapshotWorld(t)
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, _, err := w.svc.Create(ctx, 0, api.CreateVM{Name: "small", RootSize: 64 << 20}); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(api.AsError(err).Hint, "--root-size") {
		t.Errorf("a root smaller than the image: %v", err)
	}
	if _, _, err := w.svc.Create(ctx, 0, api.CreateVM{Name: "odd", RootDisk: "zfs"}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("no such root disk: %v", err)
	}
	w.createSized("a", 256<<20)
	w.mapper.Lack(true)
	if _, _, err := w.svc.Create(ctx, 0, api.CreateVM{Name: "b", RootSize: 256 << 20}); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("create without device-mapper: %v", err)
	}
	if err := w.wait(w.svc.Start(ctx, 0, "a")); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("start without device-mapper: %v", err)
	}
	w.mapper.Lack(false)
	w.machines.plan(unable)
	if err := w.wait(w.svc.Start(ctx, 0, "a")); err == nil || !strings.Contains(err.Error(), "flatten image") || w.base() != "" {
		t.Errorf("a machine that does not copy: %v, base %q", err, w.base())
	}
	if err := w.wait(w.svc.Start(ctx, 0, "a")); err != nil {
		t.Fatal(err)
	}
	if err := w.wait(w.svc.Kill(ctx, 0, "a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.base()); err != nil {
		t.Fatal(err)
	}
	if err := w.wait(w.svc.Start(ctx, 0, "a")); api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(api.AsError(err).Hint, "reset") {
		t.Errorf("start without the base: %v", err)
	}
	if err := w.wait(w.svc.Reset(ctx, 0, "a")); err != nil {
		t.Error(err)
	}
	if err := w.wait(w.svc.Start(ctx, 0, "a")); err != nil {
		t.Errorf("start after the reset: %v", err)
	}
	w.clear()
	w.down()
}
