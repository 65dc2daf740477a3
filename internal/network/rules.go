package network

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"banger/internal/linux"
)

// private are the networks that no VM may reach: this network and loopback
// (RFC 1122), private ones (RFC 1918), carrier-grade NAT (RFC 6598), link-local with
// the metadata services of clouds (RFC 3927), multicast and what is reserved.
var private = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// Names in the tables.
const (
	setNAT     = "nat"     // addresses of VMs with NAT
	setAllowed = "allowed" // private networks that are allowed
	setPrivate = "private"
	setOpened  = "opened" // links that only we let packets be forwarded from
	setGuests  = "guests" // which link may send from which addresses

	chainFromGuest = "from_guest"
	chainToGuest   = "to_guest"
	chainToHost    = "to_host"
	chainGuard     = "guard"
)

// tables renders the tables from the live attachments.
func (n *Network) tables() []linux.NftTable {
	guests := slices.SortedFunc(maps.Values(n.guests), func(a, b *guest) int { return strings.Compare(a.tap, b.tap) })
	return []linux.NftTable{routing(*n.base, disjoint(n.Allow), guests), guarding(n.base.tables, guests)}
}

// routing is the table of what is routed: beyond the host, between VMs, to the host.
func routing(b base, allow []netip.Prefix, guests []*guest) linux.NftTable {
	nat := linux.NftSet{Name: setNAT, Fields: []linux.NftField{linux.NftIPv4}}
	for _, g := range guests {
		if g.NAT {
			nat.Elements = append(nat.Elements, linux.NftKey(g.IP))
		}
	}
	opened := linux.NftSet{Name: setOpened, Fields: []linux.NftField{linux.NftLink}}
	for _, link := range b.opened {
		opened.Elements = append(opened.Elements, linux.NftKey(link))
	}
	from, to := linux.NftFrom(b.bridge), linux.NftTo(b.bridge)
	count, drop, accept := linux.NftCount(), linux.NftDrop(), linux.NftAccept()
	gateway, resolver := gatewayOf(b.subnet), resolverOf(b.subnet)
	return linux.NftTable{
		Family: linux.NftInet, Name: b.tables,
		Sets: []linux.NftSet{nat, prefixes(setAllowed, allow), prefixes(setPrivate, private), opened},
		Chains: []linux.NftChain{
			{Name: "forward", Base: &linux.NftBase{Type: "filter", Hook: "forward", Priority: "filter"}, Rules: []linux.NftRule{
				{from, linux.NftGoto(chainFromGuest)},
				{to, linux.NftGoto(chainToGuest)},
				{linux.NftFromIn(setOpened), linux.NftNotToAny(bridgePrefix), count, drop},
			}},
			{Name: chainFromGuest, Rules: []linux.NftRule{
				{linux.NftNotIPv4(), count, drop},
				{to, count, drop}, // to another VM
				{linux.NftSourceNotIn(setNAT), count, drop},
				{linux.NftDestIn(setAllowed), count, accept},
				{linux.NftDestIn(setPrivate), count, drop},
				{count, accept},
			}},
			{Name: chainToGuest, Rules: []linux.NftRule{
				{linux.NftDestIn(setNAT), linux.NftEstablished(), count, accept},
				{count, drop},
			}},
			{Name: "input", Base: &linux.NftBase{Type: "filter", Hook: "input", Priority: "filter"}, Rules: []linux.NftRule{
				{from, linux.NftGoto(chainToHost)},
				{linux.NftNotFrom("lo"), linux.NftDest(resolver), count, drop}, // it is nobody else's
			}},
			{Name: chainToHost, Rules: []linux.NftRule{
				{linux.NftEstablished(), count, accept},
				{linux.NftDest(resolver), linux.NftUDP(dnsPort), count, accept},
				{linux.NftDest(resolver), linux.NftTCP(dnsPort), count, accept},
				{linux.NftDest(gateway), linux.NftPing(), count, accept},
				{count, drop},
			}},
			{Name: "segments", Base: &linux.NftBase{Type: "filter", Hook: "forward", Priority: "mangle"}, Rules: []linux.NftRule{
				{from, linux.NftClampMSS()},
				{to, linux.NftClampMSS()},
			}},
			{Name: "postrouting", Base: &linux.NftBase{Type: "nat", Hook: "postrouting", Priority: "srcnat"}, Rules: []linux.NftRule{
				{linux.NftSourceIn(setNAT), linux.NftNotTo(b.bridge), count, linux.NftMasquerade()},
			}},
		},
	}
}

// guarding is the table of what a tap may send at all: IPv4 and ARP, from its own
// addresses. What it does not let through reaches neither bridge nor host.
func guarding(name string, guests []*guest) linux.NftTable {
	pins := linux.NftSet{Name: setGuests, Fields: []linux.NftField{linux.NftLink, linux.NftMAC, linux.NftIPv4}}
	chains := []linux.NftChain{{Name: chainGuard, Rules: []linux.NftRule{
		{linux.NftIsGuestIPv4(setGuests), linux.NftAccept()},
		{linux.NftIsGuestARP(setGuests), linux.NftAccept()},
		{linux.NftCount(), linux.NftDrop()},
	}}}
	for _, g := range guests {
		pins.Elements = append(pins.Elements, linux.NftKey(g.tap, g.mac, g.IP))
		chains = append(chains, linux.NftChain{
			Name:  g.tap,
			Base:  &linux.NftBase{Type: "filter", Hook: "ingress", Device: g.tap, Priority: "filter", Drop: true},
			Rules: []linux.NftRule{{linux.NftGoto(chainGuard)}},
		})
	}
	return linux.NftTable{Family: linux.NftNetdev, Name: name, Sets: []linux.NftSet{pins}, Chains: chains}
}

func prefixes(name string, all []netip.Prefix) linux.NftSet {
	set := linux.NftSet{Name: name, Fields: []linux.NftField{linux.NftIPv4}, Interval: true}
	for _, p := range all {
		set.Elements = append(set.Elements, linux.NftPrefix(p))
	}
	return set
}

// disjoint sorts prefixes and leaves out those that lie in another.
func disjoint(all []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	sorted := slices.SortedFunc(slices.Values(all), netip.Prefix.Compare)
	for _, p := range sorted {
		if p = p.Masked(); !overlaps(p, out) {
			out = append(out, p)
		}
	}
	return out
}
