package network_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/resource"
	"banger/internal/store"
)

// port returns the bridge of which a link is a port.
func port(t *testing.T, link string) string {
	t.Helper()
	out, err := exec.Command("ip", "link", "show", "dev", link).CombinedOutput() // /sys shows another namespace
	master := regexp.MustCompile(` master (\S+)`).FindSubmatch(out)
	if err != nil || master == nil {
		t.Errorf("%s is no port: %v: %s", link, err, out)
		return ""
	}
	return string(master[1])
}

// objects are the names of what the installation has on the host, by kind.
func (w *world) objects() map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, kind := range network.Kinds(installation) {
		refs, err := kind.List(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, ref := range refs {
			all[ref.Kind] = ref.Name
		}
	}
	return all
}

// Links that somebody has removed are made again, and the VMs are on them.
func TestMend(t *testing.T) {
	w := newWorld(t)
	n, ledger := w.daemon(w.db)
	tap, a := w.attach(n, "a")
	was := w.objects()
	for _, kind := range []string{network.KindBridge, network.KindDummy} {
		if err := errors.Join(linux.DeleteLink(was[kind]), n.Settle(t.Context())); err != nil {
			t.Fatal(err)
		}
		if is := w.objects(); is[kind] != was[kind] || port(t, tap) != was[network.KindBridge] {
			t.Errorf("without %s: %v, the tap is a port of %s; it was %v", kind, is, port(t, tap), was)
		}
	}
	if g, err := n.Guest(a.IP); err != nil || !g.Address.Contains(g.Gateway) {
		t.Errorf("the guest: %+v, %v", g, err)
	}
	// A tap cannot be made again for a VMM that has it open: that is reported.
	if err := errors.Join(linux.DeleteLink(tap), n.Settle(t.Context())); err != nil {
		t.Error(err)
	}
	found, err := ledger.Check(t.Context())
	if err != nil || len(found) != 1 || found[0].Problem != resource.Missing || found[0].Name != tap {
		t.Errorf("found %v, %v; want that %s is missing", found, err, tap)
	}
	release(t, n, ledger, "a")
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// lose replaces the database by a new one.
func (w *world) lose() {
	w.t.Helper()
	stopped := w.db.Close()
	db, err := store.Open(w.t.Context(), filepath.Join(w.t.TempDir(), "banger.db"))
	if err := errors.Join(stopped, err); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = db.Close() })
	w.db = db
}

// TestRestore loses the database of a network that is up, and perhaps network.json: the
// attachment of a VM that runs goes on, at its address, and at its end all is given back.
func TestRestore(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(t *testing.T, file string)
		same   bool // what all attachments share is what it was
	}{
		"the copy is whole":   {func(*testing.T, string) {}, true},
		"the copy is garbage": {func(t *testing.T, file string) { overwrite(t, file, "\x00\xff") }, false},
		"the copy is missing": {func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n, _ := w.daemon(w.db)
			tap, a := w.attach(n, "a")
			was := w.objects()
			stopServing(t, n)
			tc.damage(t, w.copy)
			w.lose()

			n, ledger := w.daemon(w.db)
			adopted := ledger.Adopt(t.Context(), resource.Object{Owner: "a", Kind: network.KindTap, Name: tap}) // as package vm does, by handles.json
			err := errors.Join(n.Check(t.Context()), n.Restore(t.Context()), adopted,
				ledger.Recover(t.Context(), func(owner string) bool { return owner == network.Owner || owner == "a" }))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Adopt(t.Context(), "a", a); err != nil {
				t.Fatal(err)
			}
			if err := n.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			is := w.objects()
			if is[network.KindTap] != tap || port(t, tap) != is[network.KindBridge] || tc.same && is[network.KindBridge] != was[network.KindBridge] {
				t.Errorf("there was %v, there is %v; the tap is a port of %s", was, is, port(t, tap))
			}
			if _, err := n.Guest(a.IP); err != nil {
				t.Error(err)
			}
			if aside, err := filepath.Glob(w.copy + ".lost-*"); err != nil || len(aside) > 0 != (name == "the copy is garbage") {
				t.Errorf("set aside: %q, %v", aside, err)
			}
			release(t, n, ledger, "a")
			left := w.left()
			if !tc.same { // nobody knew any more what the value was before
				if err := linux.SetSysctl("net/ipv4/conf/"+hosttest.Uplink+"/forwarding", "0"); err != nil {
					t.Error(err)
				}
				left = w.left()
			}
			if len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func overwrite(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// network.json of another boot, another installation or another network namespace tells
// of nothing here; but for a subnet, which is a choice.
func TestRestoreElsewhere(t *testing.T) {
	w := newWorld(t)
	n, _ := w.daemon(w.db)
	_, a := w.attach(n, "a")
	other, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w.lose()
	m, _ := w.daemon(w.db)
	if err := other.Do(func() error { return m.Restore(t.Context()) }); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("from another namespace: %v", err)
	}
	var c struct {
		resource.Handles
		Subnet string `json:"subnet"`
	}
	if err := resource.ReadCopy(w.copy, resource.HandlesSchema, &c); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(){func() { c.Installation = "00000000" }, func() { c.Installation, c.BootID = installation, "an earlier one" }} {
		change()
		if err := resource.WriteCopy(w.copy, c); err != nil {
			t.Fatal(err)
		}
		if err := m.Restore(t.Context()); err != nil {
			t.Error(err)
		}
		if rows, err := w.db.Resources(t.Context(), ""); err != nil || len(rows) > 0 {
			t.Errorf("taken up: %v, %v", rows, err)
		}
	}
	if fits, err := m.Fits(t.Context(), a.IP); err != nil || fits { // the network that is up has the subnet
		t.Errorf("an address of the subnet fits beside the network that has it: %t, %v", fits, err)
	}
	// All of it bears our tag and nobody knows it.
	if err := m.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	_, ledger := w.daemon(w.db)
	if err := ledger.Recover(t.Context(), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if err := linux.SetSysctl("net/ipv4/conf/"+hosttest.Uplink+"/forwarding", "0"); err != nil {
		t.Error(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
