package e2e

import (
	"archive/tar"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
)

// TestDiskUsage has a VM write, and looks at what that takes and what can go.
func TestDiskUsage(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--", "sh", "-c", "head -c 20M /dev/urandom >/big; head -c 10M /dev/urandom >/root/small; sync")
	df := func() (u api.DiskUsage) {
		t.Helper()
		if err := json.Unmarshal([]byte(h.Must(t, "system", "df", "--json")), &u); err != nil {
			t.Fatal(err)
		}
		return u
	}
	u := df()
	if len(u.VMs) != 1 || u.VMs[0].Root < 20<<20 || u.VMs[0].Root > 100<<20 || u.VMs[0].Work < 10<<20 || u.VMs[0].Work > 90<<20 || u.VMs[0].State != api.VMRunning {
		t.Errorf("VMs: %+v", u.VMs)
	}
	if len(u.Images) != 1 || !u.Images[0].Used || len(u.Kernels) != 1 || !u.Kernels[0].Used || len(u.Caches) == 0 {
		t.Errorf("%+v", u)
	}
	for _, args := range [][]string{{"system", "df"}, {"system", "df", "-v"}} {
		if out := h.Must(t, args...); !strings.Contains(out, "available") || !strings.Contains(out, "IN USE") {
			t.Errorf("%v: %s", args, out)
		}
	}
	refused{args: []string{"system", "prune"}, exit: api.CodeInvalid.ExitStatus(), error: "terminal", hint: "--force"}.check(t, h)

	lost := filepath.Join(h.Paths.State, "lost-20260101T000000.000")
	if err := os.Mkdir(lost, 0o700); err != nil {
		t.Fatal(err)
	}
	if out := h.Must(t, "system", "prune", "--force"); !strings.Contains(out, "freed ") || !strings.Contains(out, "cache/") {
		t.Errorf("pruned: %s", out)
	}
	if u := df(); len(u.Caches) != 0 || len(u.Lost) != 1 || len(u.Images) != 1 {
		t.Errorf("after a prune: %+v", u)
	}
	// What a VM uses stays with --all too, and it can be started again.
	h.Must(t, "system", "prune", "--force", "--all", "--lost")
	if u := df(); len(u.Lost) != 0 || len(u.Images) != 1 || len(u.Kernels) != 1 {
		t.Errorf("after a prune of all: %+v", u)
	}
	h.Must(t, "vm", "restart", "m")
	h.Must(t, "vm", "delete", "--force", "m")
	h.Must(t, "system", "prune", "--force", "--all")
	if u := df(); len(u.Images) != 0 || len(u.Layers) != 0 || len(u.Kernels) != 1 {
		t.Errorf("after the VM is deleted: %+v", u)
	}
}

// TestAdmission has an installation on a small file system, which is nearly full: what
// would fill it is refused, with what it needs and what there is, and what can be
// given up makes room for it.
func TestAdmission(t *testing.T) {
	h := hosttest.New(t)
	hosttest.MountTmpfs(t, h.Paths.State, "600m")
	fixture := os.Getenv("BANGER_FIXTURE")
	if fixture == "" {
		t.Skip("BANGER_FIXTURE does not name a state directory to copy: run make test")
	}
	if out, err := exec.Command("cp", "-a", "--sparse=always", fixture+"/.", h.Paths.State).CombinedOutput(); err != nil {
		t.Fatalf("copy the fixture: %v: %s", err, out)
	}
	config(t, h, "[storage]\nreserve = \"30M\"\n")
	h.Must(t, "vm", "create", "--name", "old")
	h.Must(t, "vm", "run", "--name", "running", "--", "true")

	// The file leaves less than a new VM needs beside the reserve, until prune has
	// removed what is cached.
	var u api.DiskUsage
	if err := json.Unmarshal([]byte(h.Must(t, "system", "df", "--json")), &u); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(h.Paths.State, "filler")
	if err := os.WriteFile(filler, make([]byte, u.Available-(30<<20)-(18<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "big.tar")
	if err := os.WriteFile(file, []byte(archive(t, bigEntry(64<<20))), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.Files(t)
	for _, r := range []refused{
		{args: []string{"vm", "create", "--name", "new"}, error: `create VM "new": it needs .*MiB, and .* available, of which 30MiB are kept free`},
		{args: []string{"vm", "set", "running", "--disk", "100G", "--root-size", "100G"}, error: `change VM "running": it needs`},
		{args: []string{"vm", "set", "old", "--disk", "100G", "--root-size", "100G"}, error: `change VM "old": it needs`},
		{args: []string{"image", "import", "big", file}, error: `import image "big": it needs 64.*MiB`},
		{input: archive(t, bigEntry(64<<20)), args: []string{"image", "import", "big", "-"}, error: `import image "big": .*kept free`},
		{args: []string{"kernel", "import", "k", file}, error: `import kernel "k": it needs 256MiB`},
	} {
		r.exit, r.hint = exitNoSpace, "banger system df"
		r.check(t, h)
	}
	if after := h.Files(t); !slices.Equal(after, before) {
		t.Errorf("files were %q and are %q", before, after)
	}
	h.Must(t, "vm", "exec", "running", "--", "true")
	h.Must(t, "system", "prune", "--force")
	h.Must(t, "vm", "create", "--name", "new")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "vm", "set", "running", "--disk", "100G", "--root-size", "100G")
	for _, name := range []string{"old", "new", "running"} {
		h.Must(t, "vm", "delete", "--force", name)
	}
	h.StopDaemon(t)
}

func bigEntry(size int64) tar.Header {
	return tar.Header{Name: "big", Mode: 0o644, Size: size}
}

// config writes the configuration file of an installation.
func config(t *testing.T, h *hosttest.Host, text string) {
	t.Helper()
	if err := os.WriteFile(h.Paths.Config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
