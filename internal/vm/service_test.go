package vm_test

import (
	"testing"
)

func TestLife(t *testing.T) {
	w := newWorld(t)
	if err := w.boot(0); err != nil {
		t.Fatal(err)
	}
	defer w.down()
	w.create("a")
	if err := w.wait(w.svc.Start(t.Context(), 0, "a")); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", w.get("a"))
	if err := w.wait(w.svc.Promote(t.Context(), 0, "a", "x")); err == nil {
		t.Error("promoted a running VM")
	}
	if err := w.wait(w.svc.Stop(t.Context(), 0, "a", 0)); err != nil {
		t.Fatal(err)
	}
	if err := w.wait(w.svc.Promote(t.Context(), 0, "a", "x")); err != nil {
		t.Fatal(err)
	}
	w.clear()
}
