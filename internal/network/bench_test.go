package network_test

import (
	"strconv"
	"testing"
)

// BenchmarkAttach is the daemon's own time on the network in the start of a VM,
// beside others.
func BenchmarkAttach(b *testing.B) {
	for _, others := range []int{0, 1, 100} {
		b.Run(strconv.Itoa(others), func(b *testing.B) {
			w := newWorld(b)
			n, ledger := w.daemon(w.db)
			var owners []string
			for i := range others {
				owners = append(owners, "other"+strconv.Itoa(i))
				w.attach(n, owners[i])
			}
			for b.Loop() {
				w.attach(n, "a")
				release(b, n, ledger, "a")
			}
			release(b, n, ledger, owners...)
		})
	}
}
