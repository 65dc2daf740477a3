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

// tell has the VMM stand still or go on. Where it does not answer in time it may have
// done so, or do so when it answers again: then it is told until it answers to do what it
// is known to.
func (l *live) tell(ctx context.Context, paused bool) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	do := l.inst.Resume
	if paused {
		do = l.inst.Pause
	}
	err := do(context.WithoutCancel(ctx)) // it is quick, and half of it would not be the truth
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unsure = err != nil; err == nil {
		l.paused = paused
	}
	close(l.turned)
	l.turned = make(chan struct{})
	return err
}

// pause has the machine stand still. The channel stays: what is on its way arrives when
// it goes on, unless that takes so long that the channel breaks.
func (l *live) pause(ctx context.Context) error { return l.tell(ctx, true) }

// resume has the machine go on, and its guest know what time it is.
func (l *live) resume(ctx context.Context) error {
	if err := l.tell(ctx, false); err != nil {
		return err
	}
	conn := l.connection()
	if conn == nil {
		return nil // keep makes the channel, with which the guest is told
	}
	what, err := l.configuration(ctx, l.record())
	if err == nil {
		_, err = conn.Configure(ctx, what)
	}
	if err != nil { // it runs all the same
		l.log.Warn("tell a guest that goes on what it has missed", "err", err)
	}
	return nil
}

// turnPause is how long it takes until a VMM that does not answer is told again.
const turnPause = time.Second

// settleDoubt has the VMM do what it is known to do, until it answers that it does.
// False: the VMM has ended, or ctx.
func (l *live) settleDoubt(ctx context.Context) bool {
	for {
		l.mu.Lock()
		paused, unsure := l.paused, l.unsure
		l.mu.Unlock()
		if !unsure {
			return true
		}
		err := l.retell(ctx)
		if err == nil {
			continue
		}
		l.log.Warn("have a machine stand still or go on; it is told again", "paused", paused, "err", err)
		select {
		case <-time.After(turnPause):
		case <-ctx.Done():
			return false
		case <-l.inst.Exited():
			return false
		}
	}
}

// retell tells the VMM what it is known to do, unless it has answered meanwhile.
func (l *live) retell(ctx context.Context) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	do, unsure := l.inst.Resume, l.unsure
	if l.paused {
		do = l.inst.Pause
	}
	l.mu.Unlock()
	if !unsure {
		return nil
	}
	err := do(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsure = err != nil
	return err
}

// awaitTurn waits while the machine is to stand still, when there is nobody to make a
// channel to. False: the VMM has ended, or ctx.
func (l *live) awaitTurn(ctx context.Context) bool {
	for {
		if !l.settleDoubt(ctx) {
			return false
		}
		l.mu.Lock()
		paused, turned := l.paused, l.turned
		l.mu.Unlock()
		if !paused {
			return true
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return false
		case <-l.inst.Exited():
			return false
		}
	}
}
