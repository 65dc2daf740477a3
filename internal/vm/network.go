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

// place gives a VM on the network an address, where it has none or one that the
// network has no room for any more: the host's routes may have changed.
func (s *Service) place(ctx context.Context, rec Record) (Record, error) {
	if rec.Network != api.NetworkBridge {
		return rec, nil
	}
	if fits, err := s.network.Fits(ctx, rec.IP); err != nil || fits {
		return rec, err
	}
	var err error
	rec.IP, rec.MAC, err = s.network.Pick(ctx, s.takenAddresses())
	return rec, err
}

// replace is place for a VM that is in the store.
func (s *Service) replace(ctx context.Context, rec Record) (Record, error) {
	placed, err := s.place(ctx, rec)
	if err != nil || placed == rec {
		return placed, err
	}
	return placed, s.store.UpdateVM(ctx, placed)
}

// attach puts a VM that is about to run on the network; nil where it is on none.
func (s *Service) attach(ctx context.Context, owner string, rec Record) (*vmm.NIC, error) {
	if rec.Network != api.NetworkBridge {
		return nil, nil
	}
	tap, err := s.network.Attach(ctx, owner, attachmentOf(rec))
	if err != nil {
		return nil, err
	}
	return &vmm.NIC{Tap: tap, MAC: rec.MAC}, nil
}

// attached takes up the attachment of a VM that runs.
func (s *Service) attached(ctx context.Context, rec Record) (*vmm.NIC, error) {
	if rec.Network != api.NetworkBridge {
		return nil, nil
	}
	tap, err := s.network.Adopt(ctx, runOwnerOf(rec.ID), attachmentOf(rec))
	if err != nil {
		return nil, err
	}
	return &vmm.NIC{Tap: tap, MAC: rec.MAC}, nil
}

// detach takes a VM that does not run any more off the network.
func (s *Service) detach(ctx context.Context, rec Record, released error) error {
	if released != nil {
		return released // what is still there stays under the rules
	}
	return s.network.Detach(ctx, runOwnerOf(rec.ID))
}

// guestNetwork is what the agent is to make of the guest's interface.
func (s *Service) guestNetwork(rec Record) (*wire.Network, error) {
	if rec.Network != api.NetworkBridge {
		return nil, nil
	}
	g, err := s.network.Guest(rec.IP)
	if err != nil {
		return nil, err
	}
	return &wire.Network{MAC: rec.MAC, Address: g.Address, Gateway: g.Gateway, DNS: []netip.Addr{g.DNS}}, nil
}
