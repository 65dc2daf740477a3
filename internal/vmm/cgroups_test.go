package vmm_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// newCgroups returns the Kind of an installation of its own, which leaves nothing.
func newCgroups(t *testing.T) *vmm.Cgroups {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	c, err := vmm.NewCgroups("test-" + resource.RandomName(4))
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
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			ref := resource.Ref{Kind: c.Kind(), Name: c.Name(name)}
			for range 50 {
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
