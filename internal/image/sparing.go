package image

import (
	"runtime/debug"
	"sync"
)

const (
	// sparingPercent is how much garbage there may be, in percent of what is in use, while
	// file systems are made, whose trees are the most that the daemon ever keeps.
	sparingPercent = 20
	// sparingRest and sparingEach bound the memory, in bytes, that the process has meanwhile
	// before it looks for garbage sooner than that: for each file system that is made, and
	// for all else.
	sparingRest = 12 << 20
	sparingEach = 46 << 20
)

var spare struct {
	sync.Mutex
	n       int64
	percent int
	limit   int64
}

// sparing has the process spare memory until the function that it returns is called.
func sparing() (end func()) {
	spare.Lock()
	defer spare.Unlock()
	if spare.n++; spare.n == 1 {
		spare.percent = debug.SetGCPercent(sparingPercent)
		spare.limit = debug.SetMemoryLimit(-1)
	}
	spared()
	return func() {
		spare.Lock()
		defer spare.Unlock()
		if spare.n--; spare.n == 0 {
			debug.SetGCPercent(spare.percent)
		}
		spared()
	}
}

// spared sets the limit for so many as there are now.
func spared() {
	limit := spare.limit
	if spare.n > 0 {
		limit = min(limit, sparingRest+spare.n*sparingEach)
	}
	debug.SetMemoryLimit(limit)
}
