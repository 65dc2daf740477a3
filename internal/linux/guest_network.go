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
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var link netlink.Link
	for _, l := range links {
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			link = l
			break
		}
	}
	if link == nil {
		return fmt.Errorf("look for the network interface %s: %w", mac, unix.ENODEV)
	}
	name := link.Attrs().Name
	if err := SetAddress(name, address); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("take link %s up: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Dst: ipNet(everywhere)}
	if err := netlink.RouteReplace(route); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route by %s: %w", gateway, err)
	}
	return nil
}

// everywhere is the destination of a default route.
var everywhere = netip.MustParsePrefix("0.0.0.0/0")
