package network

import (
	"context"
	"crypto/rand"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"sync"

	"banger/api"
	"banger/internal/linux"
)

// subnetSetting is where the chosen subnet is kept.
const subnetSetting = "network.subnet"

// subnetBits is the length of the prefix of a chosen subnet: 4,093 VMs.
const subnetBits = 20

// The first address of a subnet is the host's, on the bridge; the last one before
// the broadcast address is the resolver's, on the dummy link.
func gatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

func resolverOf(subnet netip.Prefix) netip.Addr { return lastOf(subnet).Prev() }

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

// candidates yields the subnets to choose from, an installation's own favourites
// first, so that those that live side by side seldom meet.
func candidates(installation string) func(yield func(netip.Prefix) bool) {
	h := fnv.New32a()
	h.Write([]byte(installation))
	start := h.Sum32()
	return func(yield func(netip.Prefix) bool) {
		try := func(a, b, c byte) bool {
			return yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, c, 0}), subnetBits))
		}
		for i := range uint32(200) {
			if !try(10, 32+byte((start+i)%200), 0) {
				return
			}
		}
		for i := range uint32(16) {
			if !try(172, 16+byte((start+i)%16), 0) {
				return
			}
		}
		for i := range uint32(16) {
			if !try(192, 168, 16*byte((start+i)%16)) {
				return
			}
		}
	}
}

// choose returns the first of the subnets that overlaps nothing in use.
func choose(subnets func(func(netip.Prefix) bool), used []netip.Prefix) (netip.Prefix, bool) {
	for p := range subnets {
		if !overlaps(p, used) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func overlaps(p netip.Prefix, used []netip.Prefix) bool {
	return slices.ContainsFunc(used, p.Overlaps)
}

// subnet returns the subnet of the VMs: that of a network that is up, the configured
// one, the one chosen earlier if nothing on the host is in its way, or a new choice.
func (n *Network) subnet(ctx context.Context) (netip.Prefix, error) {
	if n.base != nil {
		return n.base.subnet, nil
	}
	used, err := linux.UsedPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	if n.Subnet.IsValid() {
		if overlaps(n.Subnet, used) {
			return netip.Prefix{}, api.Errorf(api.CodeConflict, "use subnet %s: the host has an address or a route in it", n.Subnet).
				WithHint("configure another network.subnet, or none to have a free one chosen")
		}
		return n.Subnet.Masked(), nil
	}
	kept, found, err := n.Settings.Setting(ctx, subnetSetting)
	if err != nil {
		return netip.Prefix{}, err
	}
	if p, perr := netip.ParsePrefix(kept); found && perr == nil && !overlaps(p, used) {
		return p, nil
	}
	p, free := choose(candidates(n.Installation), used)
	if !free {
		return p, api.Errorf(api.CodeUnavailable, "choose a subnet: the host has a route to each private network").
			WithHint("configure network.subnet")
	}
	return p, n.Settings.PutSetting(ctx, subnetSetting, p.String())
}

// plan deals addresses out in turn, so that one that was given back is not somebody
// else's at once.
type plan struct {
	mu   sync.Mutex
	last netip.Addr
}

// Pick returns an IPv4 address and a MAC for a new VM: none of the taken ones, and
// not one that was picked lately.
func (n *Network) Pick(ctx context.Context, taken map[netip.Addr]bool) (netip.Addr, string, error) {
	n.mu.Lock()
	subnet, err := n.subnet(ctx)
	n.mu.Unlock()
	if err != nil {
		return netip.Addr{}, "", err
	}
	ip, ok := n.plan.next(subnet, taken)
	if !ok {
		return ip, "", api.Errorf(api.CodeUnavailable, "pick an address: all of %s are taken", subnet).
			WithHint("delete a VM, or configure a larger network.subnet")
	}
	return ip, newMAC().String(), nil
}

// Fits tells whether an address that was picked earlier can be attached now.
func (n *Network) Fits(ctx context.Context, ip netip.Addr) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	subnet, err := n.subnet(ctx)
	return err == nil && subnet.Contains(ip) && usable(subnet, ip), err
}

func usable(subnet netip.Prefix, ip netip.Addr) bool {
	return ip != subnet.Addr() && ip != gatewayOf(subnet) && ip != resolverOf(subnet) && ip != lastOf(subnet)
}

func (p *plan) next(subnet netip.Prefix, taken map[netip.Addr]bool) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !subnet.Contains(p.last) {
		p.last = somewhere(subnet)
	}
	for ip := p.last.Next(); ip != p.last; ip = ip.Next() {
		if !subnet.Contains(ip) {
			ip = subnet.Addr() // which is not usable
		}
		if usable(subnet, ip) && !taken[ip] {
			p.last = ip
			return ip, true
		}
		if ip == p.last {
			break
		}
	}
	return netip.Addr{}, false
}

// somewhere returns a random address of a subnet.
func somewhere(subnet netip.Prefix) netip.Addr {
	var random [4]byte
	rand.Read(random[:])
	first, last := subnet.Masked().Addr().As4(), lastOf(subnet).As4()
	for i := range first {
		first[i] |= random[i] & (first[i] ^ last[i])
	}
	return netip.AddrFrom4(first)
}

// newMAC returns a random unicast address of local administration; IEEE 802.
func newMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
