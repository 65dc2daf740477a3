package linux

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ConfigureLink gives the link with the hardware address mac an IPv4 address and
// makes gateway the default route. What is so already is left alone.
func ConfigureLink(mac net.HardwareAddr, address netip.Prefix, gateway netip.Addr) error {
	link, err := linkWith(mac)
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // one socket for all that follows
	if err != nil {
		return fmt.Errorf("configure link %s: %w", link.Name, err)
	}
	defer h.Close()
	if err := setAddress(h, link, address); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("take link %s up: %w", link.Name, err)
	}
	route := &netlink.Route{LinkIndex: link.Index, Gw: gateway.AsSlice(), Dst: ipNet(everywhere)}
	if err := h.RouteReplace(route); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route by %s: %w", gateway, err)
	}
	return nil
}

// linkWith finds a link by its hardware address. It knows name and index alone: all that a
// kernel tells of a link takes an emulated guest long to read.
func linkWith(mac net.HardwareAddr) (*netlink.Device, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if bytes.Equal(l.HardwareAddr, mac) {
			return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: l.Name, Index: l.Index}}, nil
		}
	}
	return nil, fmt.Errorf("look for the network interface %s: %w", mac, unix.ENODEV)
}

// everywhere is the destination of a default route.
var everywhere = netip.MustParsePrefix("0.0.0.0/0")

// RefreshLink has the link with the hardware address mac forget the addresses of its
// neighbours, which may have others by now, and tells them its own: a gratuitous ARP
// request (RFC 5227).
func RefreshLink(mac net.HardwareAddr, address netip.Addr) error {
	link, err := linkWith(mac)
	if err != nil {
		return err
	}
	neighbours, err := netlink.NeighList(link.Index, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range neighbours {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
			continue // somebody's will, not what was learned
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s: %w", n.IP, err)
		}
	}
	return announce(link.Index, mac, address.As4())
}

// announce says on a link that an IPv4 address is at mac.
func announce(index int, mac net.HardwareAddr, ip [4]byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce address: %w", err)
	}
	defer func() { go unix.Close(fd) }() // which waits for a grace period of RCU
	// Ethernet and IPv4, addresses of 6 and 4 bytes, a request; RFC 826.
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	packet = append(append(packet, mac...), ip[:]...)
	packet = append(append(packet, make([]byte, 6)...), ip[:]...)
	to := &unix.SockaddrLinklayer{Protocol: 0x0608, Ifindex: index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}} // ETH_P_ARP, big-endian
	if err := unix.Sendto(fd, packet, 0, to); err != nil {
		return fmt.Errorf("announce address: %w", err)
	}
	return nil
}
