package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"banger/internal/failpoint"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkKind is what sort of network interface a link is.
type LinkKind string

// The kinds of links that we make.
const (
	LinkBridge LinkKind = "bridge"
	LinkDummy  LinkKind = "dummy"
	LinkTap    LinkKind = "tuntap"
)

// MaxLinkName is how long the name of a link may be, in bytes (IFNAMSIZ less its NUL).
const MaxLinkName = unix.IFNAMSIZ - 1

// AddLink makes a bridge, without spanning tree, or a dummy link with a hardware
// address. One of that name that exists already is an error (EEXIST). A kernel
// without dummy links gets a bridge without ports in its place.
func AddLink(kind LinkKind, name string, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	var err error
	switch kind {
	case LinkBridge:
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	case LinkDummy:
		if err = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); errors.Is(err, unix.EOPNOTSUPP) {
			err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		}
	default:
		err = unix.EINVAL
	}
	if err == nil {
		err = failpoint.Pass("link", "created")
	}
	if err != nil {
		return fmt.Errorf("create %s %s: %w", kind, name, err)
	}
	return nil
}

// FindLink tells of which kind the link called name is; empty where there is none.
func FindLink(name string) (LinkKind, error) {
	link, err := findLink(name)
	if link == nil || err != nil {
		return "", err
	}
	return LinkKind(link.Type()), nil
}

// findLink returns nil where there is no link of that name.
func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for link %s: %w", name, err)
	}
	return link, nil
}

// needLink is findLink for a link that has to be there.
func needLink(name string) (netlink.Link, error) {
	link, err := findLink(name)
	if err == nil && link == nil {
		err = fmt.Errorf("look for link %s: %w", name, unix.ENODEV)
	}
	return link, err
}

// dumpTries is how often a list is asked for that changes while the kernel gives it.
const dumpTries = 20

// dump asks for a list until the kernel gives one that is consistent; netlink(7), NLM_F_DUMP_INTR.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// addresses returns the IPv4 addresses of a link, or of all links.
func addresses(h *netlink.Handle, link netlink.Link) ([]netlink.Addr, error) {
	return dump(func() ([]netlink.Addr, error) { return h.AddrList(link, unix.AF_INET) })
}

// LinkNames returns the names of all links that begin with prefix and are of one of the
// kinds, of any where none is given.
func LinkNames(prefix string, kinds ...LinkKind) ([]string, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, prefix) && (len(kinds) == 0 || slices.Contains(kinds, LinkKind(l.Type()))) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// DeleteLink removes a link; nil where there is none of that name.
func DeleteLink(name string) error {
	link, err := findLink(name)
	if link == nil || err != nil {
		return err
	}
	if err = netlink.LinkDel(link); err == nil {
		err = failpoint.Pass("link", "deleted")
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// SetLinkUp takes a link up.
func SetLinkUp(name string) error {
	link, err := needLink(name)
	if err != nil {
		return err
	}
	if err = netlink.LinkSetUp(link); err == nil {
		err = failpoint.Pass("link", "up")
	}
	if err != nil {
		return fmt.Errorf("take link %s up: %w", name, err)
	}
	return nil
}

// JoinBridge makes a link an isolated port of a bridge: no frame goes from it to
// another isolated port, or back; bridge(8), "isolated".
func JoinBridge(name, bridge string) error {
	link, err := needLink(name)
	if err != nil {
		return err
	}
	master, err := needLink(bridge)
	if err != nil {
		return err
	}
	if err = netlink.LinkSetMaster(link, master); err == nil {
		err = failpoint.Pass("link", "enslaved")
	}
	if err != nil {
		return fmt.Errorf("join %s to bridge %s: %w", name, bridge, err)
	}
	if err = netlink.LinkSetIsolated(link, true); err == nil {
		err = failpoint.Pass("link", "isolated")
	}
	if err != nil {
		return fmt.Errorf("isolate %s on bridge %s: %w", name, bridge, err)
	}
	return nil
}

// SetAddress gives a link an IPv4 address, with the length of its subnet's prefix,
// and takes away any other.
func SetAddress(name string, address netip.Prefix) error {
	link, err := needLink(name)
	if err != nil {
		return err
	}
	return setAddress(&netlink.Handle{}, link, address)
}

func setAddress(h *netlink.Handle, link netlink.Link, address netip.Prefix) error {
	name, want := link.Attrs().Name, &netlink.Addr{IPNet: ipNet(address)}
	has, err := addresses(h, link)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range has {
		if a.IPNet.String() == want.IPNet.String() {
			continue
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take address %s from %s: %w", a.IPNet, name, err)
		}
	}
	if err = h.AddrReplace(link, want); err == nil {
		err = failpoint.Pass("link", "addressed")
	}
	if err != nil {
		return fmt.Errorf("give address %s to %s: %w", address, name, err)
	}
	return nil
}

// ipNet keeps the address's own bits, as netlink wants them.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits).Masked(), ok
}

// UsedPrefix is an IPv4 network that the host has an address in or a route to.
type UsedPrefix struct {
	netip.Prefix
	Link string // by which it is reached; empty where that is not one link
}

// UsedPrefixes returns the IPv4 networks that the host has an address in or a route
// to, in any routing table, but for default routes and loopback.
func UsedPrefixes() ([]netip.Prefix, error) {
	networks, err := Networks()
	var used []netip.Prefix
	for _, n := range networks {
		used = append(used, n.Prefix)
	}
	return used, err
}

// Networks returns the same as UsedPrefixes, with the links.
func Networks() ([]UsedPrefix, error) {
	var used []UsedPrefix
	names := map[int]string{}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	add := func(n *net.IPNet, link int) {
		if p, ok := prefixOf(n); ok && p.Bits() > 0 && !p.Addr().IsLoopback() {
			used = append(used, UsedPrefix{p, names[link]})
		}
	}
	addrs, err := addresses(&netlink.Handle{}, nil)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet, a.LinkIndex)
		add(a.Peer, a.LinkIndex)
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		add(r.Dst, r.LinkIndex)
	}
	return used, nil
}

// AddressedLinks returns the names of the links that have an IPv4 address, save
// loopback.
func AddressedLinks() ([]string, error) {
	addrs, err := addresses(&netlink.Handle{}, nil)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var names []string
	for _, a := range addrs {
		link, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
			continue // gone meanwhile
		}
		names = append(names, link.Attrs().Name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
