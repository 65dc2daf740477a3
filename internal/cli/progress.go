package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/api"

	"github.com/docker/go-units"
	"golang.org/x/term"
)

// progress says on standard error what goes on: on a terminal in a line that changes
// and vanishes, with a bar below it for each of several parts, elsewhere in plain
// lines, few of them, if the work lasts.
type progress struct {
	out  io.Writer                  // nil: say nothing
	size func() (width, height int) // of the terminal; nil where out is none
	now  func() time.Time

	mu    sync.Mutex
	on    int // so many lines are on the terminal
	last  api.Progress
	told  string      // the step that the last line was about
	since time.Time   // when to speak next
	timer *time.Timer // makes plain lines begin
}

const (
	// Plain lines begin when the work has lasted so long, and one step has no more
	// of them than one in linePause.
	lineDelay = 2 * time.Second
	linePause = 10 * time.Second
	// redraw is how often the line on a terminal changes at most within a step.
	redraw = 50 * time.Millisecond
)

// newProgress makes a progress that is silent where that is asked for, and, unless
// the work is long by nature, everywhere but on a terminal.
func newProgress(d *deps, long bool) *progress {
	p := &progress{now: time.Now}
	f, isFile := d.stderr.(*os.File)
	switch {
	case d.quiet:
	case isFile && term.IsTerminal(int(f.Fd())):
		p.out, p.size = f, func() (int, int) {
			s := windowSize(int(f.Fd()))
			return int(s.Cols), int(s.Rows)
		}
	case long:
		p.out = d.stderr
		p.since = p.now().Add(lineDelay)
		p.timer = time.AfterFunc(lineDelay, p.begin)
	}
	return p
}

// begin makes plain lines begin with what is going on by now.
func (p *progress) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out != nil && p.told == "" {
		p.since = time.Time{}
		p.line()
	}
}

func (p *progress) report(now api.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || now.Step == "" {
		return
	}
	p.last = now
	if p.size == nil {
		p.line()
	} else {
		p.draw()
	}
}

// line prints a plain line, if it is time for one; p.mu is held.
func (p *progress) line() {
	at := p.now()
	if p.last.Step == "" || at.Before(p.since) && (p.told == "" || p.told == p.last.Step) {
		return
	}
	fmt.Fprintln(p.out, printable(describe(p.last)))
	p.told, p.since = p.last.Step, at.Add(linePause)
}

// draw changes the line on the terminal, if it is time for that; p.mu is held.
func (p *progress) draw() {
	at := p.now()
	if p.last.Step == p.told && at.Before(p.since) {
		return
	}
	p.told, p.since = p.last.Step, at.Add(redraw)
	width, height := p.size()
	p.erase()
	lines := []string{fitting(describe(p.last), width-len(" ... ")) + " ..."}
	for _, part := range fittingParts(p.last.Parts, height-2) {
		lines = append(lines, bar(part, width))
	}
	fmt.Fprint(p.out, strings.Join(lines, "\n"))
	p.on = len(lines)
}

// erase takes the lines off the terminal, or makes the line free; p.mu is held.
func (p *progress) erase() {
	if p.on > 1 {
		fmt.Fprintf(p.out, "\r\x1b[%dA\x1b[J", p.on-1)
	} else {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// fitting is what of a text has room in a line of the terminal.
func fitting(text string, room int) string {
	runes := []rune(printable(text))
	if room > 0 && len(runes) > room {
		runes = runes[:room]
	}
	return string(runes)
}

// fittingParts are the parts with something to show, no more than there is room for: first
// those in which something happens.
func fittingParts(parts []api.Part, room int) []api.Part {
	rank := map[string]int{"wait": 1, "done": 2}
	parts = slices.DeleteFunc(slices.Clone(parts), func(p api.Part) bool { return p.Step == "there" })
	if len(parts) > room {
		slices.SortStableFunc(parts, func(a, b api.Part) int { return rank[a.Step] - rank[b.Step] })
		parts = parts[:max(0, room)]
	}
	return parts
}

// bar shows how far a part is, in a line of the terminal.
func bar(part api.Part, width int) string {
	const cells, most = 24, 70
	text := fmt.Sprintf("  %s  %-5s", part.Name, part.Step)
	if part.Total > 0 {
		done := min(part.Current, part.Total)
		if full := int(cells * done / part.Total); width >= most {
			text += " [" + strings.Repeat("=", full) + strings.Repeat(" ", cells-full) + "]"
		}
		text += fmt.Sprintf(" %s of %s", units.BytesSize(float64(done)), units.BytesSize(float64(part.Total)))
	}
	return fitting(text, width-1)
}

// describe puts progress into words.
func describe(now api.Progress) string {
	switch {
	case now.Total > 0:
		return fmt.Sprintf("%s %d%%", now.Step, 100*min(now.Current, now.Total)/now.Total)
	case now.Current > 0 && now.Unit == "":
		return now.Step + " " + units.BytesSize(float64(now.Current))
	case now.Current > 0:
		return fmt.Sprintf("%s %d %s", now.Step, now.Current, now.Unit)
	}
	return now.Step
}

// clear ends it: the line is taken off the terminal.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.on > 0 {
		p.erase()
	}
	p.out, p.on = nil, 0
}

// counter reports how much is read through it.
type counter struct {
	io.Reader
	line  *progress
	step  string
	total int64
	read  int64
}

// Len is how much is to come, 0 where that is not known.
func (c *counter) Len() int { return int(max(0, c.total-c.read)) }

func (c *counter) Read(b []byte) (int, error) {
	if c.read == 0 {
		c.line.report(api.Progress{Step: c.step})
	}
	n, err := c.Reader.Read(b)
	before := c.read
	if c.read += int64(n); c.read>>20 != before>>20 {
		c.line.report(api.Progress{Step: c.step, Current: c.read, Total: c.total})
	}
	return n, err
}
