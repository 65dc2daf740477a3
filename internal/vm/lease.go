package vm

import (
	"context"
	"time"
)

// leaseGrace is how long an ephemeral VM lives on without anybody who holds a
// lease on it: time enough for a CLI to come back after a restart of the daemon.
const leaseGrace = 10 * time.Second

// lease counts who holds an ephemeral VM.
type lease struct {
	holders int
	timer   *time.Timer
}

// hold takes a lease, until release is called.
func (o *owner) hold() (release func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lease.holders++
	if o.lease.timer != nil {
		o.lease.timer.Stop()
	}
	return func() {
		o.mu.Lock()
		o.lease.holders--
		o.mu.Unlock()
		o.expire()
	}
}

// expire lets an ephemeral VM without holders go after the grace period.
func (o *owner) expire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.rec.Ephemeral || o.lease.holders > 0 {
		return
	}
	select {
	case <-o.quit:
		return
	case <-o.gone:
		return
	default:
	}
	o.lease.timer = time.AfterFunc(leaseGrace, func() {
		o.mu.Lock()
		held := o.lease.holders > 0
		o.mu.Unlock()
		if held {
			return
		}
		o.svc.log.Info("lease ended", "vm", o.name())
		if err := o.svc.destroyNow(context.Background(), o); err != nil {
			o.svc.log.Error("delete VM whose lease ended", "vm", o.name(), "err", err)
		}
	})
}
