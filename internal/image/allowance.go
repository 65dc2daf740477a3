package image

import (
	"context"
	"fmt"

	"banger/api"
)

// smallTree is the memory, in bytes, that what is made of each archive may take at any time.
const smallTree = 4 << 20

// allowance is the right to take more memory than that for an image that is made. Of an
// owner's images one has it at a time, so that many that arrive at once take little more
// than one. Who has it waits for nobody who makes images: it is left before.
type allowance struct {
	m      *Manager
	owner  uint32
	report api.Reporter
	leave  func() // nil where it is not held
}

// take returns when a is held.
func (a *allowance) take(ctx context.Context) error {
	what := fmt.Sprint("memory of ", a.owner)
	for a.leave == nil {
		if a.leave = a.m.claim(what); a.leave != nil {
			return nil
		}
		a.report(api.Progress{Step: "wait for another image, which is large"})
		if err := a.m.await(ctx, what); err != nil {
			return err
		}
	}
	return nil
}

// end leaves it to others, if it is held.
func (a *allowance) end() {
	if a.leave != nil {
		a.leave()
		a.leave = nil
	}
}
