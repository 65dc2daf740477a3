package cli

import (
	"fmt"
	"io"
	"os"
	"sync"

	"banger/api"

	"github.com/docker/go-units"
	"golang.org/x/term"
)

// progress is one line on the terminal that says what goes on; nothing on a pipe.
type progress struct {
	mu  sync.Mutex
	out io.Writer // nil where there is no terminal
	on  bool
}

func newProgress(d *deps) *progress {
	if f, ok := d.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progress{out: f}
	}
	return &progress{}
}

func (p *progress) report(now api.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || now.Step == "" {
		return
	}
	text := now.Step
	switch {
	case now.Total > 0:
		text += fmt.Sprintf(" %d%%", 100*now.Current/now.Total)
	case now.Current > 0 && now.Unit == "":
		text += " " + units.BytesSize(float64(now.Current))
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s ...", text)
	p.on = true
}

func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.on = false
	}
}

// counter reports how much is read through it.
type counter struct {
	io.Reader
	line  *progress
	step  string
	total int64
	read  int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	before := c.read
	if c.read += int64(n); c.read>>20 != before>>20 {
		c.line.report(api.Progress{Step: c.step, Current: c.read, Total: c.total})
	}
	return n, err
}
