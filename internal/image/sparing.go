package image

import (
	"runtime/debug"
	"sync"
)

// sparingPercent is how much garbage there may be, in percent of what is in use, while
// file systems are made, whose trees are the most that the daemon ever keeps.
const sparingPercent = 20

var spare struct {
	sync.Mutex
	n      int
	before int
}

// sparing has the process spare memory until the function that it returns is called.
func sparing() (end func()) {
	spare.Lock()
	defer spare.Unlock()
	if spare.n++; spare.n == 1 {
		spare.before = debug.SetGCPercent(sparingPercent)
	}
	return func() {
		spare.Lock()
		defer spare.Unlock()
		if spare.n--; spare.n == 0 {
			debug.SetGCPercent(spare.before)
		}
	}
}
