package image

import (
	"runtime/debug"
	"sync"
)

const (
	// sparingPercent is how much garbage there may be, in percent of what is in use, while
	// file systems are made, whose trees are the most that the daemon ever keeps.
	sparingPercent = 20
	// sparingRest is the memory, in bytes, of all else that the process has meanwhile.
	sparingRest = 12 << 20
)

var spare struct {
	sync.Mutex
	n       int
	trees   int64 // bytes that the trees may take
	percent int
	limit   int64
}

// sparing has the process spare memory until the function that it returns is called:
// garbage is looked for sooner as soon as there is more than trees of so many bytes, all
// else, and a quarter.
func sparing(most int64) (end func()) {
	spare.Lock()
	defer spare.Unlock()
	if spare.n++; spare.n == 1 {
		spare.percent = debug.SetGCPercent(sparingPercent)
		spare.limit = debug.SetMemoryLimit(-1)
	}
	spared(most)
	return func() {
		spare.Lock()
		defer spare.Unlock()
		if spare.n--; spare.n == 0 {
			debug.SetGCPercent(spare.percent)
		}
		spared(-most)
	}
}

// spared sets the limit when trees may take so many bytes more.
func spared(more int64) {
	spare.trees += more
	limit := spare.limit
	if spare.n > 0 {
		limit = min(limit, sparingRest+spare.trees+spare.trees/4)
	}
	debug.SetMemoryLimit(limit)
}
