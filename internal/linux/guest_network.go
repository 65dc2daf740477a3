package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkWith finds the link with a hardware address in /sys/class/net, which is at dir: that
// of the network namespace of who mounted it. Of several it is the oldest: a bridge takes the
// address of one of its ports. An emulated guest reads there a good deal faster than what
// netlink tells of a link. unix.ENODEV where there is none.
func LinkWith(dir string, mac net.HardwareAddr) (net.Interface, error) {
	links, err := os.ReadDir(dir)
	if err != nil {
		return net.Interface{}, fmt.Errorf("list links: %w", err)
	}
	var found net.Interface
	for _, l := range links {
		address, err := os.ReadFile(filepath.Join(dir, l.Name(), "address"))
		if err != nil || strings.TrimSpace(string(address)) != mac.String() {
			continue // one that has just gone has none
		}
		text, err := os.ReadFile(filepath.Join(dir, l.Name(), "ifindex"))
		if err != nil {
			continue
		}
		index, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && (found.Index == 0 || index < found.Index) {
			found = net.Interface{Index: index, Name: l.Name(), HardwareAddr: mac}
		}
	}
	if found.Index == 0 {
		return found, fmt.Errorf("look for the network interface %s: %w", mac, unix.ENODEV)
	}
	return found, nil
}

// ConfigureLink gives a link an IPv4 address and makes gateway the default route. What is
// so already is left alone.
func ConfigureLink(of net.Interface, address netip.Prefix, gateway netip.Addr) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: of.Name, Index: of.Index}}
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

// everywhere is the destination of a default route.
var everywhere = netip.MustParsePrefix("0.0.0.0/0")

// RefreshLink has a link forget the addresses of its neighbours, which may have others by
// now, and tells them its own: a gratuitous ARP request (RFC 5227).
func RefreshLink(link net.Interface, address netip.Addr) error {
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
	return announce(link, address.As4())
}

// announce says on a link that an IPv4 address is its.
func announce(link net.Interface, ip [4]byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce address: %w", err)
	}
	defer func() { go unix.Close(fd) }() // which waits for a grace period of RCU
	// Ethernet and IPv4, addresses of 6 and 4 bytes, a request; RFC 826.
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	packet = append(append(packet, link.HardwareAddr...), ip[:]...)
	packet = append(append(packet, make([]byte, 6)...), ip[:]...)
	to := &unix.SockaddrLinklayer{Protocol: 0x0608, Ifindex: link.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}} // ETH_P_ARP, big-endian
	if err := unix.Sendto(fd, packet, 0, to); err != nil {
		return fmt.Errorf("announce address: %w", err)
	}
	return nil
}

// ListenTCP listens on a TCP port of every address. An emulated guest has it sooner than
// from net.Listen, which looks first at what the kernel is capable of.
func ListenTCP(port int) (net.Listener, error) {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port})
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: port}
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	file := os.NewFile(uintptr(fd), "port "+strconv.Itoa(port))
	defer file.Close() // the listener has its own
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = unix.Bind(fd, to)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return net.FileListener(file)
}
