package vm

import (
	"time"

	"banger/api"
)

// stopwatch takes the time of the steps of a start.
type stopwatch struct {
	last  time.Time
	steps []api.Step
}

func newStopwatch() *stopwatch { return &stopwatch{last: time.Now()} }

// lap ends a step; without a name its time is the next one's.
func (w *stopwatch) lap(name string) {
	if name == "" {
		return
	}
	now := time.Now()
	w.steps = append(w.steps, api.Step{Name: name, Seconds: now.Sub(w.last).Seconds()})
	w.last = now
}

// split makes the end of the last step, which took seconds, a step of its own. The
// figure may be a guest's: it is kept within the step.
func (w *stopwatch) split(name string, seconds float64) {
	whole := &w.steps[len(w.steps)-1]
	if !(seconds > 0) { // NaN too
		seconds = 0
	}
	seconds = min(seconds, whole.Seconds)
	whole.Seconds -= seconds
	w.steps = append(w.steps, api.Step{Name: name, Seconds: seconds})
}
