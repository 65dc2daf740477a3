package vm

import (
	"context"
	"time"

	"banger/api"
)

// Pause has a running VM stand still, its memory where it is.
func (s *Service) Pause(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.pause", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.do(ctx, evPause, 0, report)
	})
}

// Resume has a paused VM go on.
func (s *Service) Resume(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return s.operate(caller, ref, "vm.resume", func(ctx context.Context, o *owner, report api.Reporter) error {
		return o.do(ctx, evResume, 0, report)
	})
}

func (l *live) isPaused() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.paused
}

// turn notes that the VMM has been told to stand still or to go on.
func (l *live) turn(paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused, l.unsure = paused, false
	close(l.turned)
	l.turned = make(chan struct{})
}

// pause has the machine stand still. The channel stays: what is on its way arrives when
// it goes on, unless that takes so long that the channel breaks.
func (l *live) pause(ctx context.Context) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	err := l.inst.Pause(ctx)
	if err == nil {
		l.turn(true)
	}
	return err
}

// resume has the machine go on, and its guest know what time it is.
func (l *live) resume(ctx context.Context) error {
	l.telling.Lock()
	err := l.inst.Resume(ctx)
	if err == nil {
		l.turn(false)
	}
	l.telling.Unlock()
	if err != nil {
		return err
	}
	conn := l.connection()
	if conn == nil {
		return nil // keep makes the channel, with which the guest is told
	}
	what, err := l.configuration(ctx, l.record())
	if err == nil {
		err = conn.Configure(ctx, what)
	}
	if err != nil { // it runs all the same
		l.log.Warn("tell a guest that goes on what it has missed", "err", err)
	}
	return nil
}

// turnPause is how long it takes until a VMM that does not answer is asked again.
const turnPause = time.Second

// awaitTurn waits while the machine is to stand still, when there is nobody to make a
// channel to. Where an earlier daemon may not have come to tell the VMM what it is to do,
// it does. False: the VMM has ended, or ctx.
func (l *live) awaitTurn(ctx context.Context) bool {
	for {
		var again <-chan time.Time
		if err := l.ensure(ctx); err != nil {
			l.log.Warn("have a machine stand still or go on; it is tried again", "err", err)
			again = time.After(turnPause)
		}
		l.mu.Lock()
		paused, turned := l.paused, l.turned
		l.mu.Unlock()
		if !paused && again == nil {
			return true
		}
		select {
		case <-turned:
		case <-again:
		case <-ctx.Done():
			return false
		case <-l.inst.Exited():
			return false
		}
	}
}

// ensure has the VMM do what an earlier daemon wanted, if that is not sure.
func (l *live) ensure(ctx context.Context) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	paused, unsure := l.paused, l.unsure
	l.mu.Unlock()
	if !unsure {
		return nil
	}
	tell := l.inst.Resume
	if paused {
		tell = l.inst.Pause
	}
	err := tell(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsure = err != nil
	return err
}
