package image

import (
	"fmt"
	"math"
	"sync"
	"time"

	"banger/api"
)

// barsEvery is how often the state of the layers is reported while nothing but
// numbers changes.
const barsEvery = 50 * time.Millisecond

// bars is how far each layer of an image is.
type bars struct {
	report api.Reporter

	mu    sync.Mutex
	parts []api.Part
	told  time.Time
}

// newBars has a bar for each layer that is to arrive; the others are there.
func newBars(art Artifact, fetches []*fetch, report api.Reporter) *bars {
	b := &bars{report: report}
	for i, l := range art.Layers {
		part := api.Part{Name: fmt.Sprintf("layer %d", i+1), Step: "there", Total: max(0, l.Size)}
		if len(l.Digest) > 19 {
			part.Name = l.Digest[7:19]
		}
		if fetches[i] != nil {
			part.Step = "wait"
		}
		b.parts = append(b.parts, part)
	}
	return b
}

// total is how many bytes are to arrive, 0 where that is not known.
func (b *bars) total() (total int64) {
	for _, p := range b.parts {
		if p.Step != "there" {
			if p.Total == 0 {
				return 0
			}
			total += min(p.Total, math.MaxInt64-total)
		}
	}
	return total
}

// arrived notes how much of a blob is here.
func (b *bars) arrived(i int, n int64) {
	step := "get"
	if n == b.parts[i].Total {
		step = "got"
	}
	b.set(i, step, n)
}

// written notes that a layer is being made of its blob.
func (b *bars) written(i int, p api.Progress) {
	b.mu.Lock()
	whole := b.parts[i].Current == b.parts[i].Total
	b.mu.Unlock()
	if whole { // else what arrives is the better measure
		b.set(i, "write", p.Current)
	}
}

// made notes that a layer is there.
func (b *bars) made(i int) { b.set(i, "done", b.parts[i].Total) }

func (b *bars) set(i int, step string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.parts[i]
	changed := p.Step != step
	p.Step, p.Current = step, n
	if now := time.Now(); changed || now.Sub(b.told) >= barsEvery {
		b.told = now
		b.tell()
	}
}

// tell reports all layers; b.mu is held.
func (b *bars) tell() {
	sum := api.Progress{Step: fmt.Sprintf("get %d layers", len(b.parts)), Parts: append([]api.Part(nil), b.parts...)}
	for _, p := range b.parts {
		switch p.Step {
		case "there":
			continue
		case "wait", "get":
			sum.Current += p.Current
		default:
			sum.Current += p.Total
		}
		sum.Total += p.Total
	}
	if sum.Current == sum.Total {
		sum.Step, sum.Current, sum.Total = fmt.Sprintf("write %d layers", len(b.parts)), 0, 0
	}
	b.report(sum)
}
