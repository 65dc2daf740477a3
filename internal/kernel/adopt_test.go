package kernel

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"banger/internal/resource"
)

// TestAdopt loses the database: bundles are what they were, with the same default. What
// says nothing of itself, or is of a name that there is, is set aside.
func TestAdopt(t *testing.T) {
	m, _, dir := newManager(t)
	ctx := t.Context()
	for _, name := range []string{"first", "second", "garbled", "gutted"} {
		if _, err := m.Import(ctx, name, bytes.NewReader(kernelDeb(t, kernelFiles())), noReport); err != nil {
			t.Fatal(err)
		}
	}
	kernels, err := m.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]Kernel{}
	for _, k := range kernels {
		before[k.Name] = k
	}
	at := func(name, file string) string { return filepath.Join(dir, before[name].Dir, file) }
	text, err := os.ReadFile(at("first", "kernel.json"))
	for _, err := range []error{
		err, os.WriteFile(at("garbled", "kernel.json"), []byte(`{"schema": 1`), 0o600), os.Remove(at("gutted", "vmlinux")),
		os.Mkdir(filepath.Join(dir, "kernels/alien"), 0o700), os.WriteFile(filepath.Join(dir, "kernels/alien/kernel.json"), text, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	db := &memory{}
	m = manage(dir, db)
	for range 2 { // the second finds nothing to do
		if err := m.Adopt(ctx, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	kernels, err = m.List(ctx)
	if err != nil || len(kernels) != 2 {
		t.Fatalf("kernels %+v, %v", kernels, err)
	}
	for _, k := range kernels {
		if want := before[k.Name]; !k.Created.Equal(want.Created) || k.Default != (k.Name == "first") {
			t.Errorf("%+v was %+v", k, want)
		} else if k.Created = want.Created; !reflect.DeepEqual(k, want) {
			t.Errorf("%+v was %+v", k, want)
		}
		if _, err := m.Boot(ctx, k.Name); err != nil {
			t.Error(err)
		}
	}
	if len(db.refs) != 2 || db.refs[0].State != resource.Held {
		t.Errorf("the ledger has %+v", db.refs)
	}
	aside, err := filepath.Glob(filepath.Join(dir, "lost-*", "kernels", "*"))
	if err != nil || len(aside) != 3 {
		t.Errorf("set aside are %q, %v", aside, err)
	}
}
