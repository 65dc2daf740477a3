package vm

import (
	"context"
	"math/rand/v2"
	"sync"

	"banger/api"
)

// UIDs is a range of user ids, both ends included, of which each VM has one: its VMM
// runs as that user. Nobody else on the host may have any of them.
type UIDs struct{ First, Last uint32 }

func (u UIDs) contains(uid uint32) bool { return uid >= u.First && uid <= u.Last }

// confinement gives each VM a user of its own for its VMM.
type confinement struct {
	inert
	svc  *Service
	uids UIDs

	mu   sync.Mutex
	last uint32 // which was given; those after it have rested the longest
}

// settle gives a VM a user, where it has none or one that is not ours to give any more.
func (c *confinement) settle(_ context.Context, rec Record) (Record, error) {
	if c.uids.contains(rec.UID) {
		return rec, nil
	}
	uid, ok := c.next(c.svc.takenUIDs())
	if !ok {
		return rec, api.Errorf(api.CodeUnavailable, "find a user for the VMM: all from %d to %d have VMs", c.uids.First, c.uids.Last).
			WithHint("delete a VM, or configure a larger range (vm.uids)")
	}
	rec.UID = uid
	return rec, nil
}

func (c *confinement) next(taken map[uint32]bool) (uint32, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := uint64(c.uids.Last) - uint64(c.uids.First) + 1
	if !c.uids.contains(c.last) {
		c.last = c.uids.First + uint32(rand.Uint64N(size))
	}
	for i := uint64(1); i <= size; i++ {
		uid := c.uids.First + uint32((uint64(c.last-c.uids.First)+i)%size)
		if !taken[uid] {
			c.last = uid
			return uid, true
		}
	}
	return 0, false
}

// takenUIDs are those of all VMs.
func (s *Service) takenUIDs() map[uint32]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := map[uint32]bool{}
	for _, o := range s.owners {
		o.mu.Lock()
		taken[o.rec.UID] = true
		o.mu.Unlock()
	}
	return taken
}
