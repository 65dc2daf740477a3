package cli

import (
	"bytes"
	"testing"
	"time"

	"banger/api"
)

// clock is a time that a test moves.
type clock struct{ time.Time }

func (c *clock) now() time.Time          { return c.Time }
func (c *clock) pass(much time.Duration) { c.Time = c.Add(much) }

func TestProgressInLines(t *testing.T) {
	var out bytes.Buffer
	at := &clock{time.Now()}
	p := &progress{out: &out, now: at.now, since: at.Add(lineDelay)}
	p.report(api.Progress{Step: "find"}) // too early to speak
	at.pass(lineDelay)
	p.begin()
	p.report(api.Progress{Step: "find"}) // said already
	for n := range int64(100) {
		p.report(api.Progress{Step: "download", Current: n << 20, Total: 100 << 20})
	}
	at.pass(linePause)
	p.report(api.Progress{Step: "download", Current: 3 << 20})
	p.report(api.Progress{Step: "unpack\x1b[31m", Current: 7, Unit: "files"})
	p.clear()
	p.report(api.Progress{Step: "late"})
	if want := "find\ndownload 0%\ndownload 3MiB\nunpack [31m 7 files\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// What is quick is not spoken of.
func TestProgressOfQuickWork(t *testing.T) {
	var out bytes.Buffer
	at := &clock{time.Now()}
	p := &progress{out: &out, now: at.now, since: at.Add(lineDelay)}
	for _, step := range []string{"one", "two", "three"} {
		p.report(api.Progress{Step: step})
	}
	p.clear()
	p.begin()
	if out.Len() > 0 {
		t.Errorf("got %q", out.String())
	}
}

func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	at := &clock{time.Now()}
	p := &progress{out: &out, width: func() int { return 20 }, now: at.now}
	p.report(api.Progress{Step: "boot"})
	p.report(api.Progress{Step: "boot", Current: 1, Total: 2}) // at once again: not drawn
	at.pass(redraw)
	p.report(api.Progress{Step: "boot", Current: 1, Total: 2})
	p.report(api.Progress{Step: "a step whose name is long"})
	p.clear()
	const start = "\r\x1b[K"
	if want := start + "boot ..." + start + "boot 50% ..." + start + "a step whose na ..." + start; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
