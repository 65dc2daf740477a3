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
	p := &progress{out: &out, size: func() (int, int) { return 20, 24 }, now: at.now}
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

// A bar for each layer that arrives, below the line, no more than the terminal has room for.
func TestProgressOfParts(t *testing.T) {
	var out bytes.Buffer
	at := &clock{time.Now()}
	height := 24
	p := &progress{out: &out, size: func() (int, int) { return 80, height }, now: at.now}
	now := api.Progress{Step: "get 4 layers", Current: 1, Total: 4, Parts: []api.Part{
		{Name: "aaaa", Step: "there", Total: 9}, {Name: "bbbb", Step: "done", Current: 1 << 20, Total: 1 << 20},
		{Name: "cccc", Step: "wait", Total: 2 << 20}, {Name: "dd\x1b[31m", Step: "get", Current: 1 << 20, Total: 2 << 20}}}
	p.report(now)
	at.pass(redraw)
	height = 3
	p.report(now)
	p.clear()
	const full, none, half = "========================", "                        ", "============            "
	get := "  dd [31m  get   [" + half + "] 1MiB of 2MiB"
	if want := "\r\x1b[Kget 4 layers 25% ...\n  bbbb  done  [" + full + "] 1MiB of 1MiB\n  cccc  wait  [" + none + "] 0B of 2MiB\n" + get +
		"\r\x1b[3A\x1b[Jget 4 layers 25% ...\n" + get + "\r\x1b[1A\x1b[J"; out.String() != want {
		t.Errorf("got\n%q, want\n%q", out.String(), want)
	}
}
