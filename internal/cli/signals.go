package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// No signal is lost: interrupts catches all of them from the start of the process
// to its end, and where one goes depends on what is under way.
//
//   - Before a command runs in a VM, the first signal cancels the work; what it has
//     begun is undone. A second one does not wait for that.
//   - While a command runs in a VM, signals go to it. Three within a short time end
//     the command line itself: guest or daemon may hang.
//   - After that, a signal ends the command line at once.
type interrupts struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	leave  chan interrupted // the process shall end now
	now    func() time.Time

	mu      sync.Mutex
	phase   phase
	guest   chan<- string
	recent  []time.Time // of the signals that went to the guest
	restore func()      // gives the terminal back
}

type phase int

const (
	working phase = iota // no command runs in a VM yet
	serving              // one does
	leaving              // it has ended
)

const (
	impatient       = 3
	impatientWithin = 5 * time.Second
)

// interrupted is the signal that ended the command line.
type interrupted struct{ syscall.Signal }

func (i interrupted) Error() string { return "interrupted" }

// status is what a shell shows for death by the signal.
func (i interrupted) status() int { return 128 + int(i.Signal) }

func newInterrupts(ctx context.Context) *interrupts {
	i := &interrupts{leave: make(chan interrupted, 1), now: time.Now}
	i.ctx, i.cancel = context.WithCancelCause(ctx)
	return i
}

// listen catches the signals, apart from those that this process was started to
// ignore, as by nohup(1).
func (i *interrupts) listen() {
	caught := make(chan os.Signal, 16)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) {
			signal.Notify(caught, s)
		}
	}
	go func() {
		for s := range caught {
			if number, ok := s.(syscall.Signal); ok {
				i.handle(number)
			}
		}
	}()
}

func (i *interrupts) handle(s syscall.Signal) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.phase == serving:
		now := i.now()
		i.recent = append(i.recent, now)
		if n := len(i.recent) - impatient; n >= 0 && now.Sub(i.recent[n]) <= impatientWithin {
			i.end(s)
			return
		}
		select {
		case i.guest <- signalNames[s]:
		default: // the guest has not even taken the first ones
		}
	case i.phase == working && i.ctx.Err() == nil:
		i.cancel(interrupted{s})
	default:
		i.end(s)
	}
}

// end makes the process end; i.mu is held.
func (i *interrupts) end(s syscall.Signal) {
	select {
	case i.leave <- interrupted{s}:
	default:
	}
}

// hangUp ends the process as SIGINT does: the terminal is raw, and the guest does
// not take what is typed.
func (i *interrupts) hangUp() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.end(syscall.SIGINT)
}

// serve sends signals to guest from now on, and returns the error of a signal that
// came before.
func (i *interrupts) serve(guest chan<- string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ctx.Err() != nil {
		return context.Cause(i.ctx)
	}
	i.phase, i.guest = serving, guest
	return nil
}

// served says that the guest takes no signals any more.
func (i *interrupts) served() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.phase = leaving
}

// holdTerminal takes the function that gives the terminal back; giveBack calls it,
// if need be, once.
func (i *interrupts) holdTerminal(restore func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.restore = restore
}

func (i *interrupts) giveBack() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.restore != nil {
		i.restore()
		i.restore = nil
	}
}
