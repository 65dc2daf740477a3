package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// TestGuestThatStandsStill has a guest not get anywhere in its boot: the machine is made
// anew.
func TestGuestThatStandsStill(t *testing.T) {
	t.Parallel()
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "create", "--name", "a", "--net", "none", "--disk", "0")
	done := make(chan hosttest.Result, 1)
	go func() { done <- h.Banger(t, "vm", "start", "a") }()
	state := h.Paths.State
	hosttest.Eventually(t, 30*time.Second, "a kernel that boots", func() bool {
		console, err := filepath.Glob(filepath.Join(state, "vms", "*", "console.log"))
		if err != nil || len(console) != 1 {
			return false
		}
		said, err := os.Stat(console[0])
		if err != nil || said.Size() == 0 {
			return false
		}
		pid := vmmOf(state)
		return pid != 0 && syscall.Kill(pid, syscall.SIGSTOP) == nil
	})
	r := <-done
	if r.Exit != 0 {
		t.Fatalf("start: %+v", r)
	}
	if got := show(t, h, "a").Steps[0]; got.Name != "still" || got.Seconds < 20 {
		t.Errorf("the first step took %+v", got)
	}
	h.Must(t, "vm", "exec", "a", "--", "true")
	h.Must(t, "vm", "delete", "--force", "a")
	nothingLeft(t, h)
}

// vmmOf is the QEMU of an installation that has but one, 0 before it is there.
func vmmOf(state string) int {
	programs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range programs {
		line, _ := os.ReadFile(p) // it may be gone
		if name, _, _ := strings.Cut(string(line), "\x00"); strings.Contains(filepath.Base(name), "qemu-system") && strings.Contains(string(line), state) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			return pid
		}
	}
	return 0
}
