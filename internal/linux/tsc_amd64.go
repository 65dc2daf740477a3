package linux

import (
	"math"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

func rdtsc() uint64

// TSCKHz measures the rate of the processor's time stamp counter in kHz, over 50 ms,
// against CLOCK_MONOTONIC_RAW. Zero means that it is not known.
func TSCKHz() int64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t0, n0 := tscPair()
	time.Sleep(50 * time.Millisecond)
	t1, n1 := tscPair()
	return int64(math.Round(float64(t1-t0) / float64(n1-n0) * 1e6))
}

// tscPair reads both clocks at one moment: the tightest of several readings.
func tscPair() (tsc uint64, ns int64) {
	best := uint64(math.MaxUint64)
	for range 20 {
		var ts unix.Timespec
		before := rdtsc()
		if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
			continue
		}
		if width := rdtsc() - before; width < best {
			best, tsc, ns = width, before+width/2, ts.Nano()
		}
	}
	return tsc, ns
}
