// Package bench measures banger against the least that could do the same, in the
// same run: each benchmark prints one line with the ratio of the two. `make bench`
// runs them all, `make bench BENCH=name` one. Their figures are for people; no
// test passes or fails by them.
package bench

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// rounds is how often each side of a comparison runs, unless that takes long.
const rounds = 7

// compare runs ours and the floor in turn and prints the ratio of their medians.
func compare(b *testing.B, name string, rounds int, goal float64, ours, floor func() time.Duration) {
	b.Helper()
	var a, f []time.Duration
	for range rounds {
		a, f = append(a, ours()), append(f, floor())
		if b.Failed() {
			return
		}
	}
	slices.Sort(a)
	slices.Sort(f)
	mine, least := a[rounds/2], f[rounds/2]
	fmt.Printf("%s ratio=%.2f goal<=%.2f ours=%v floor=%v\n", name, float64(mine)/float64(least), goal,
		mine.Round(10*time.Microsecond), least.Round(10*time.Microsecond))
}

// timed runs a command that has to succeed.
func timed(b *testing.B, cmd *exec.Cmd) time.Duration {
	b.Helper()
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		b.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return took
}

// BenchmarkList compares the list of 100 VMs, from the start of the command line to
// its end, with a program that does nothing.
func BenchmarkList(b *testing.B) {
	h := hosttest.NewSeeded(b)
	for i := range 100 {
		h.Must(b, "vm", "create", "--name", fmt.Sprintf("vm-%d", i))
	}
	compare(b, "list", rounds, 25,
		func() time.Duration { return timed(b, h.Command(b.Context(), "vm", "list")) },
		func() time.Duration { return timed(b, exec.Command("true")) })
}
