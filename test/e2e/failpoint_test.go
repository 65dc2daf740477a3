package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// TestDeathAtPoints has the real daemon die at some of the points of a start, with a
// real VMM; all of them are for the tests of internal/vm.
func TestDeathAtPoints(t *testing.T) {
	h := hosttest.NewSeeded(t)
	for _, point := range []string{"tap.acquire.acted", "cgroup.acquire.held", "qemu.forked", "vm.connected"} {
		t.Run(point, func(t *testing.T) {
			h.StopDaemon(t) // the next command starts one that is armed
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := h.Command(ctx, "vm", "run", "--name", "m", "--memory", "192M", "--", "true")
			cmd.Env = append(cmd.Env, "BANGER_FAILPOINT="+point)
			if r := hosttest.Run(t, cmd, ""); r.Exit == 0 || !strings.Contains(r.Stderr, "banger: ") {
				t.Errorf("exit status %d: %s", r.Exit, r.Stderr)
			}
			for _, id := range h.VMs(t) {
				h.Must(t, "vm", "delete", "--force", id)
			}
			nothingLeft(t, h)
		})
	}
}
