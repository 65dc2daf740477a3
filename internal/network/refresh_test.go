package network_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"banger/internal/hosttest"
	"banger/internal/linux"
)

// TestRefreshLink has a link forget a neighbour that it has learned of and say where its
// own address is. The other end of the link is a tap.
func TestRefreshLink(t *testing.T) {
	const name = "refreshed"
	if err := errors.Join(linux.AddTap(name), linux.SetLinkUp(name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := linux.DeleteLink(name); err != nil {
			t.Error(err)
		}
	})
	tap, err := linux.OpenTap(name)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ParseMAC("02:00:00:00:00:01")
	if err != nil {
		t.Fatal(err)
	}
	for ip, state := range map[string]int{"192.0.2.1": netlink.NUD_STALE, "192.0.2.2": netlink.NUD_PERMANENT} {
		if err := netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Index, IP: net.ParseIP(ip), HardwareAddr: other, State: state}); err != nil {
			t.Fatal(err)
		}
	}
	hosttest.Eventually(t, time.Minute, "the carrier, without which no frame is sent", func() bool {
		link, err := net.InterfaceByName(name)
		return err == nil && link.Flags&net.FlagRunning != 0
	})
	own := netip.MustParseAddr("192.0.2.9")
	if err := linux.RefreshLink(*link, own); err != nil {
		t.Fatal(err)
	}
	left, err := netlink.NeighList(link.Index, netlink.FAMILY_V4)
	if err != nil || len(left) != 1 || left[0].IP.String() != "192.0.2.2" {
		t.Errorf("of its neighbours are left %v, %v", left, err)
	}
	ip := own.As4()
	want := append(append(bytes.Repeat([]byte{0xff}, 6), link.HardwareAddr...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	want = append(append(append(append(want, link.HardwareAddr...), ip[:]...), make([]byte, 6)...), ip[:]...)
	frame := make([]byte, 2000)
	for end := time.Now().Add(time.Minute); ; { // the kernel sends frames of its own
		n, err := tap.Read(frame)
		if err == nil && bytes.Contains(frame[:n], want) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no gratuitous ARP came: %x, %v", frame[:max(n, 0)], err)
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
}
