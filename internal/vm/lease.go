package vm

import (
	"context"
	"time"

	"banger/api"
)

// leaseGrace is how long an ephemeral VM lives on without anybody who holds a
// lease on it: time enough for a CLI to come back after a restart of the daemon.
const leaseGrace = 10 * time.Second

// lease counts who holds an ephemeral VM.
type lease struct {
	holders int
	timer   *time.Timer
	over    bool // nobody held it for so long that it is being deleted
}

// hold takes a lease, until release is called, once.
func (o *owner) hold() (release func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lease.over {
		return nil, api.Errorf(api.CodeConflict, "hold VM %q: nobody did, and it is being deleted", o.rec.Name)
	}
	o.lease.holders++
	o.disarm()
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.lease.holders--
		o.expire()
	}, nil
}

// disarm stops the timer of the grace period; o.mu is held.
func (o *owner) disarm() {
	if o.lease.timer != nil {
		o.lease.timer.Stop()
	}
}

// expire lets an ephemeral VM without holders go after the grace period; o.mu is held.
func (o *owner) expire() {
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
	o.disarm()
	o.lease.timer = time.AfterFunc(o.svc.leaseGrace, o.expired)
}

// expired deletes a VM whose grace period is over. It tries again as long as it has
// to: nobody else will.
func (o *owner) expired() {
	o.mu.Lock()
	held := o.lease.holders > 0
	o.lease.over = !held
	o.mu.Unlock()
	if held {
		return
	}
	o.svc.log.Info("lease ended", "vm", o.name())
	if err := o.svc.destroyNow(context.Background(), o); err != nil && api.CodeOf(err) != api.CodeNotFound {
		o.svc.log.Error("delete VM whose lease ended", "vm", o.name(), "err", err)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.expire() // which does nothing when the daemon is ending
	}
}
