package vm

import (
	"context"
	"net/netip"

	"banger/api"
	"banger/internal/guest/wire"
	"banger/internal/network"
	"banger/internal/vmm"
)

func attachmentOf(rec Record) network.Attachment {
	return network.Attachment{IP: rec.IP, MAC: rec.MAC, NAT: rec.NAT, Name: rec.Name}
}

// takenAddresses are those of all VMs.
func (s *Service) takenAddresses() map[netip.Addr]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := map[netip.Addr]bool{}
	for _, o := range s.owners {
		o.mu.Lock()
		taken[o.rec.IP] = true
		o.mu.Unlock()
	}
	return taken
}

// onNetwork is a VM's place on the network.
type onNetwork struct {
	svc     *Service
	network *network.Network
}

func (onNetwork) step() string { return "network" }

// settle gives a VM an address, where it has none or one that the network has no
// room for any more: the host's routes may have changed.
func (n onNetwork) settle(ctx context.Context, rec Record) (Record, error) {
	if rec.Network != api.NetworkBridge {
		return rec, nil
	}
	if fits, err := n.network.Fits(ctx, rec.IP); err != nil || fits {
		return rec, err
	}
	var err error
	rec.IP, rec.MAC, err = n.network.Pick(ctx, n.svc.takenAddresses())
	return rec, err
}

func (n onNetwork) acquire(ctx context.Context, owner string, rec Record) error {
	if rec.Network != api.NetworkBridge {
		return nil
	}
	_, err := n.network.Attach(ctx, owner, attachmentOf(rec))
	return err
}

func (n onNetwork) adopt(ctx context.Context, owner string, rec Record) error {
	if rec.Network != api.NetworkBridge {
		return nil
	}
	_, err := n.network.Adopt(ctx, owner, attachmentOf(rec))
	return err
}

func (n onNetwork) describe(_ context.Context, owner string, rec Record, d *description) error {
	if tap, attached := n.network.Tap(owner); attached {
		d.machine.NIC = &vmm.NIC{Tap: tap, MAC: rec.MAC}
	}
	return nil
}

func (n onNetwork) configure(_ context.Context, rec Record, c *wire.Configure) error {
	if rec.Network != api.NetworkBridge {
		return nil
	}
	g, err := n.network.Guest(rec.IP)
	if err != nil {
		return err
	}
	c.Network = &wire.Network{MAC: rec.MAC, Address: g.Address, Gateway: g.Gateway, DNS: []netip.Addr{g.DNS}}
	return nil
}

func (n onNetwork) change(ctx context.Context, owner string, to Record) error {
	return n.network.Change(ctx, owner, attachmentOf(to))
}

func (n onNetwork) released(ctx context.Context, owner string) error {
	return n.network.Detach(ctx, owner)
}
