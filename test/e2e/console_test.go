package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// consoleFlooded has a guest write to its console without end while no daemon runs
// and the console file has almost reached the VMM's limit on files. The VM lives on
// and the file stops growing; the next daemon makes it short, and shows its end.
func consoleFlooded(t *testing.T, h *hosttest.Host) {
	console := filepath.Join(h.Paths.State, "vms", h.VMs(t)[0], "console.log")
	limit := fileLimit(t, shown(t, h, "m", "pid"))
	h.Must(t, "vm", "exec", "m", "--", "sh", "-c",
		"(yes 0123456789012345678901234567890123456789 >/dev/console; >/tmp/flooded) >/dev/null 2>&1 </dev/null &")
	h.StopDaemon(t)
	if err := os.Truncate(console, limit-64<<10); err != nil { // sparse: what a chatty year would leave
		t.Fatal(err)
	}
	hosttest.Eventually(t, 20*time.Second, "the flood reaches the limit", func() bool { return size(t, console) == limit })

	h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "kill $(pidof yes); echo alive >/dev/console")
	hosttest.Eventually(t, 30*time.Second, "the console file is short again", func() bool { return size(t, console) <= 4<<20 })
	h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "while [ ! -e /tmp/flooded ]; do sleep 0.1; done; echo the-end-$((6*7)) >/dev/console")
	hosttest.Eventually(t, 10*time.Second, "the logs show the end", func() bool {
		logs := h.Must(t, "vm", "logs", "m")
		return strings.HasSuffix(logs, "the-end-42") && len(logs) < 8<<20
	})
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// shown returns a value that vm show shows of a VM.
func shown(t *testing.T, h *hosttest.Host, vm, key string) string {
	t.Helper()
	for line := range strings.Lines(h.Must(t, "vm", "show", vm)) {
		if f := strings.Fields(line); len(f) > 1 && strings.EqualFold(strings.TrimSuffix(f[0], ":"), key) {
			return f[1]
		}
	}
	t.Fatalf("vm show shows no %s", key)
	return ""
}

// fileLimit returns how long a file may get that a process writes, in bytes; see
// proc_pid_limits(5).
func fileLimit(t *testing.T, pid string) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "Max file size"); found {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatalf("the VMM's files are not limited: %v", err)
			}
			return n
		}
	}
	t.Fatal("no limit on the size of files is shown")
	return 0
}
