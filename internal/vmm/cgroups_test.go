package vmm_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/systemd"
	"banger/internal/vmm"
)

// newCgroups returns the Kind of an installation of its own, which leaves nothing.
func newCgroups(t *testing.T) *vmm.Cgroups {
	t.Helper()
	return cgroupsOf(t, "test-"+resource.RandomName(4))
}

func cgroupsOf(t *testing.T, installation string) *vmm.Cgroups {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	c, err := vmm.NewCgroups(installation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		parent := filepath.Dir(c.Path(c.Name("x")))
		if _, err := os.Stat(parent); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", parent, err)
		}
	})
	return c
}

// startIn starts a process in a cgroup that ends by no signal but SIGKILL.
func startIn(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", "trap '' TERM INT HUP; sleep infinity & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestCgroupsLife(t *testing.T) {
	c, ctx := newCgroups(t), t.Context()
	ref := resource.Ref{Kind: c.Kind(), Name: c.Name("one")}
	expect := func(when string, presence resource.Presence, listed ...resource.Ref) {
		t.Helper()
		if got, err := c.Inspect(ctx, ref); err != nil || got != presence {
			t.Errorf("%s: %v, %v; want %v", when, got, err, presence)
		}
		if got, err := c.List(ctx); err != nil || !slices.EqualFunc(got, listed, func(a, b resource.Ref) bool {
			return a.Kind == b.Kind && a.Name == b.Name
		}) {
			t.Errorf("%s: listed %v, %v; want %v", when, got, err, listed)
		}
	}
	expect("before", resource.Absent)
	for range 2 { // the second finds what the first has made
		if err := c.Acquire(ctx, ref); err != nil {
			t.Fatal(err)
		}
	}
	expect("held", resource.Ours, ref)

	cmd := startIn(t, c.Path(ref.Name))
	if pids, err := linux.CgroupPIDs(c.Path(ref.Name)); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("the cgroup holds %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	for range 2 { // the second finds nothing
		if err := c.Release(ctx, ref); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("the process ended by %v", ws)
	}
	expect("released", resource.Absent)
}

// The last one out takes the parent with it, also while others come in.
func TestCgroupsConcurrently(t *testing.T) {
	c := newCgroups(t)
	rounds := 50
	if systemd.Booted() {
		rounds = 3 // each is some jobs of systemd's
	}
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			ref := resource.Ref{Kind: c.Kind(), Name: c.Name(name)}
			for range rounds {
				if err := c.Acquire(t.Context(), ref); err != nil {
					t.Error("acquire:", err)
				}
				if err := c.Release(t.Context(), ref); err != nil {
					t.Error("release:", err)
				}
			}
		})
	}
	wg.Wait()
}

// TestCgroupsFaults has an acquisition end at each point that it passes, by an error or
// with its daemon: whoever releases what there is of it then leaves nothing.
func TestCgroupsFaults(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	limits := vmm.LimitsFor(1, 64<<20, 0)
	installation := "test-" + resource.RandomName(4)
	c := cgroupsOf(t, installation)
	if there, err := c.Controllers(); err == nil && slices.Contains(there, "io") && c.CheckIO(".") == nil {
		limits.IO = &vmm.IO{Path: ".", WriteBPS: 50 << 20}
	}
	spec, err := json.Marshal(limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { failpoint.Arm(nil) })
	acquire := func(name string, dies int) (points []string, err error) {
		failpoint.Arm(func(point string) error {
			if points = append(points, point); len(points) == dies {
				return syscall.EIO
			}
			return nil
		})
		defer failpoint.Arm(nil)
		err = c.Acquire(t.Context(), resource.Ref{Kind: c.Kind(), Name: name, Spec: spec})
		return points, err
	}
	gone := func(by *vmm.Cgroups, name, when string) {
		t.Helper()
		if err := by.Release(t.Context(), resource.Ref{Kind: c.Kind(), Name: name}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if refs, err := by.List(t.Context()); err != nil || len(refs) != 0 {
			t.Errorf("%s: %v is left, %v", when, refs, err)
		}
	}
	name := c.Name(resource.RandomName(4))
	points, err := acquire(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	gone(c, name, "undisturbed")
	t.Logf("it passes %q", points)
	if systemd.Booted() && !slices.Contains(points, "scope.divided") || limits.IO != nil && !slices.Contains(points, "cgroup.io") {
		t.Errorf("it passes %q", points)
	}
	for i, point := range points {
		for _, next := range []*vmm.Cgroups{c, cgroupsOf(t, installation)} { // the same daemon, and the one after it
			name := c.Name(resource.RandomName(4))
			if _, err := acquire(name, i+1); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: %v", point, err)
			}
			gone(next, name, point)
		}
	}
}
