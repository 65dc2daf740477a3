package registry

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync/atomic"
	"time"
)

// Patience is how long a registry may take. Where it says 0, it is what is usual.
type Patience struct {
	Answer   time.Duration // until the header of an answer is there: 30 s
	Document time.Duration // until all of an answer is, such as a manifest or a token: 2 min
	Window   time.Duration // in which paceBytes of whatever it sends are to arrive: 30 s
	Pause    time.Duration // after a layer broke off the first time, then twice as long each time: 400 ms
}

// paceBytes is the least that arrives in a window.
const paceBytes = 1 << 10

func (p Patience) orUsual() Patience {
	return Patience{
		Answer: cmp.Or(p.Answer, 30*time.Second), Document: cmp.Or(p.Document, 2*time.Minute),
		Window: cmp.Or(p.Window, 30*time.Second), Pause: cmp.Or(p.Pause, 400*time.Millisecond),
	}
}

var (
	errStalled = errors.New("the registry hardly sends any more")
	errEndless = fmt.Errorf("the registry sends more than %d bytes for an answer", maxDocument)
)

// layerKey is where the context of requests for a layer has its path on the registry.
type layerKey struct{}

// isLayer says whether an answer is a layer, which may be long in all respects: what
// was asked for in the first place, not a token or an error on the way there.
func isLayer(resp *http.Response) bool {
	first := resp.Request
	for first.Response != nil { // the redirect that led to it
		first = first.Response.Request
	}
	return first.Method == http.MethodGet && first.URL.RequestURI() == first.Context().Value(layerKey{}) &&
		(resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent)
}

// pace is a body that ends with an error when it comes too slowly, or is too much.
type pace struct {
	io.ReadCloser
	window  time.Duration
	n, seen atomic.Int64
	left    int64 // that there may be, where there is a limit
	limited bool
	why     atomic.Pointer[error]
	timers  [2]*time.Timer
}

// paced watches over a body, also over a read that blocks.
func paced(body io.ReadCloser, patience Patience, layer bool) io.ReadCloser {
	p := &pace{ReadCloser: body, window: patience.Window, left: maxDocument + 1, limited: !layer}
	p.timers[0] = time.AfterFunc(math.MaxInt64, p.look)
	p.timers[0].Reset(p.window) // which look may do as soon
	if p.limited {
		p.timers[1] = time.AfterFunc(patience.Document, func() {
			p.breakOff(fmt.Errorf("the registry takes more than %v for an answer", patience.Document))
		})
	}
	return p
}

func (p *pace) look() {
	n := p.n.Load()
	if n-p.seen.Swap(n) < paceBytes {
		p.breakOff(errStalled)
		return
	}
	p.timers[0].Reset(p.window)
}

func (p *pace) breakOff(why error) {
	p.why.CompareAndSwap(nil, &why)
	p.ReadCloser.Close()
}

// Read implements io.Reader.
func (p *pace) Read(b []byte) (int, error) {
	if p.limited && p.left == 0 {
		return 0, errEndless
	}
	if p.limited {
		b = b[:min(int64(len(b)), p.left)]
	}
	n, err := p.ReadCloser.Read(b)
	p.n.Add(int64(n))
	p.left -= int64(n)
	if why := p.why.Load(); why != nil && err != nil && err != io.EOF {
		err = *why
	}
	return n, err
}

// Close implements io.Closer.
func (p *pace) Close() error {
	for _, t := range p.timers {
		if t != nil {
			t.Stop()
		}
	}
	return p.ReadCloser.Close()
}
