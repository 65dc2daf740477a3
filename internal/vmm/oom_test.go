package vmm_test

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/vmm"
)

// What the kernel writes; that it does so is shown where it has the controller.
func TestOutOfMemoryReads(t *testing.T) {
	const calm = "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n"
	for name, tc := range map[string]struct{ events, limit, want string }{
		"no controller": {"", "", ""},
		"reclaimed":     {calm, "100", ""},
		"its limit": {"low 0\nhigh 0\nmax 40\noom 1\noom_kill 1\noom_group_kill 1\n", "629145600\n",
			"out of memory: the VMM needed more than the 600 MiB that it may have"},
		"its former limit": {"oom 1\noom_kill 1\n", "max\n", "out of memory: the VMM needed more than it may have"},
		"the host's":       {"max 0\noom 0\noom_kill 1\n", "629145600\n", "out of memory: the host had none left, and its kernel ended the VMM"},
		"nonsense":         {"oom_kill\noom_kill x\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"memory.events": tc.events, "memory.max": tc.limit} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := vmm.OutOfMemory(dir); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
