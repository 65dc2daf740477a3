package network_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/network"
	"banger/internal/resource"
	"banger/internal/store"
)

const installation = "1a2b3c4d"

// world is what outlives a daemon: a database, and a host's network.
type world struct {
	t    testing.TB
	db   *store.DB
	copy string // path of network.json
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("links need root")
	}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return &world{t, db, filepath.Join(t.TempDir(), "network.json")}
}

// daemon is one run of a daemon, with rows as it finds them.
func (w *world) daemon(rows resource.Store) (*network.Network, *resource.Ledger) {
	w.t.Helper()
	boot, err := linux.BootID()
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	ledger := resource.New(rows, boot, log, network.Kinds(installation)...)
	return network.New(network.Config{Installation: installation, Ledger: ledger, Settings: w.db, Copy: w.copy, Log: log}), ledger
}

// left is what there is of the installation.
func (w *world) left() []string {
	w.t.Helper()
	var all []string
	for _, kind := range network.Kinds(installation) {
		refs, err := kind.List(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, ref := range refs {
			all = append(all, ref.Kind+" "+ref.Name)
		}
	}
	forwarding, err := linux.Sysctl("net/ipv4/conf/" + hosttest.Uplink + "/forwarding")
	if err != nil {
		w.t.Fatal(err)
	}
	if forwarding != "0" {
		all = append(all, "forwarding")
	}
	rows, err := w.db.Resources(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ref := range rows {
		all = append(all, fmt.Sprintf("row %s %s %s", ref.Kind, ref.Name, ref.State))
	}
	return all
}

func (w *world) attach(n *network.Network, owner string) (string, network.Attachment) {
	w.t.Helper()
	ip, mac, err := n.Pick(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	a := network.Attachment{IP: ip, MAC: mac, NAT: true, Name: owner}
	tap, err := n.Attach(w.t.Context(), owner, a)
	if err != nil {
		w.t.Fatal(err)
	}
	return tap, a
}

// dropped is how many packets the guard has dropped.
func (w *world) dropped() int {
	w.t.Helper()
	names, err := linux.NftNames("banger_" + installation)
	if err != nil || len(names) != 1 {
		w.t.Fatalf("tables %v, %v", names, err)
	}
	out, err := exec.Command("nft", "list", "chain", "netdev", names[0], "guard").CombinedOutput()
	count := regexp.MustCompile(`counter packets (\d+)`).FindSubmatch(out)
	if err != nil || count == nil {
		w.t.Fatalf("nft: %v: %s", err, out)
	}
	var n int
	if _, err := fmt.Sscan(string(count[1]), &n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// frame is an Ethernet frame with the header of a tap before it.
func frame(from net.HardwareAddr, kind uint16, payload []byte) []byte {
	b := make([]byte, 10) // virtio_net_hdr: nothing to be done
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(append(b, payload...), make([]byte, 40)...)
}

func arp(mac net.HardwareAddr, ip netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, mac...), ip.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), 10, 0, 0, 1)
}

func ipv4(from netip.Addr) []byte {
	b := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0}
	return append(append(b, from.AsSlice()...), 203, 0, 113, 7)
}

// What a guest sends in another's name reaches nobody.
func TestGuard(t *testing.T) {
	w := newWorld(t)
	n, ledger := w.daemon(w.db)
	tap, a := w.attach(n, "a")
	_, b := w.attach(n, "b")
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ParseMAC(b.MAC)
	if err != nil {
		t.Fatal(err)
	}
	f, err := linux.OpenTap(tap)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, test := range map[string]struct {
		frame   []byte
		dropped int
	}{
		"own IPv4":           {frame(mac, 0x0800, ipv4(a.IP)), 0},
		"own ARP":            {frame(mac, 0x0806, arp(mac, a.IP)), 0},
		"IPv4 of another":    {frame(mac, 0x0800, ipv4(b.IP)), 1},
		"IPv4 of nobody":     {frame(mac, 0x0800, ipv4(netip.IPv4Unspecified())), 1},
		"MAC of another":     {frame(other, 0x0800, ipv4(a.IP)), 1},
		"another altogether": {frame(other, 0x0800, ipv4(b.IP)), 1},
		"ARP for another":    {frame(mac, 0x0806, arp(mac, b.IP)), 1},
		"ARP with a MAC":     {frame(mac, 0x0806, arp(other, a.IP)), 1},
		"IPv6":               {frame(mac, 0x86dd, make([]byte, 40)), 1},
		"a VLAN":             {frame(mac, 0x8100, append([]byte{0, 5, 8, 0}, ipv4(a.IP)...)), 1},
		"spanning tree":      {frame(mac, 38, make([]byte, 38)), 1},
	} {
		before := w.dropped()
		if _, err := f.Write(test.frame); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := w.dropped() - before; got != test.dropped {
			t.Errorf("%s: %d dropped, want %d", name, got, test.dropped)
		}
	}
	release(t, n, ledger, "a", "b")
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func release(t testing.TB, n *network.Network, ledger *resource.Ledger, owners ...string) {
	t.Helper()
	for _, owner := range owners {
		if err := errors.Join(ledger.ReleaseOwner(t.Context(), owner), n.Detach(t.Context(), owner)); err != nil {
			t.Error(err)
		}
	}
}

// The next daemon takes up what there is, as it is; what nobody adopts goes.
func TestNextDaemon(t *testing.T) {
	w := newWorld(t)
	n, _ := w.daemon(w.db)
	tap, a := w.attach(n, "a")
	_, _ = w.attach(n, "b")
	f, err := linux.OpenTap(tap)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(frame(make(net.HardwareAddr, 6), 0x0800, ipv4(a.IP))); err != nil {
		t.Fatal(err)
	}
	before := w.dropped()
	if before == 0 {
		t.Fatal("nothing was dropped, so nothing can be lost")
	}
	stopServing(t, n)

	n, ledger := w.daemon(w.db)
	if err := ledger.Recover(t.Context(), func(owner string) bool { return owner == "a" || owner == network.Owner }); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Adopt(t.Context(), "a", a); err != nil || got != tap {
		t.Fatalf("adopt: %q, %v; want %q", got, err, tap)
	}
	for range 2 {
		if err := n.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.dropped(); got != before {
		t.Errorf("%d dropped, %d before: the counter was reset", got, before)
	}
	if _, err := n.Guest(a.IP); err != nil {
		t.Error(err)
	}
	w.attach(n, "c")
	a.NAT = false
	if err := n.Change(t.Context(), "a", a); err != nil {
		t.Error(err)
	}
	if got := w.dropped(); got != before {
		t.Errorf("%d dropped, %d before: another's change has reset the counter", got, before)
	}
	stopServing(t, n)

	// One that is given up at once takes nothing from those that come after it.
	n, _ = w.daemon(w.db)
	a.NAT = true
	_, err = n.Adopt(t.Context(), "c", network.Attachment{IP: a.IP.Next(), MAC: a.MAC})
	if err = errors.Join(err, n.Detach(t.Context(), "c")); err != nil {
		t.Error(err)
	}
	if _, err := n.Adopt(t.Context(), "a", a); err != nil {
		t.Error(err)
	}
	if _, err := n.Guest(a.IP); err != nil {
		t.Errorf("before Settle: %v", err)
	}
	if err := n.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := n.Guest(a.IP); err != nil {
		t.Error(err)
	}
	stopServing(t, n)

	n, ledger = w.daemon(w.db)
	err = errors.Join(ledger.Recover(t.Context(), func(owner string) bool { return owner == network.Owner }), n.Settle(t.Context()))
	if left := w.left(); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}

// stopServing ends the sockets of a daemon that is no more.
func stopServing(t *testing.T, n *network.Network) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.Run(ctx)
}

// Forwarding that somebody else wants too is not switched off.
func TestForwardingOfOthers(t *testing.T) {
	w := newWorld(t)
	n, ledger := w.daemon(w.db)
	w.attach(n, "a")
	if err := linux.SetSysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	release(t, n, ledger, "a")
	if left := w.left(); len(left) != 1 || left[0] != "forwarding" {
		t.Errorf("left: %v, want forwarding", left)
	}
	if err := linux.SetSysctl("net/ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
}

// failing is a store whose every call fails once some have succeeded: the daemon
// dies there.
type failing struct {
	resource.Store
	calls int
}

var errDied = errors.New("the daemon died")

func (f *failing) live() error {
	if f.calls--; f.calls < 0 {
		return errDied
	}
	return nil
}

func (f *failing) InsertResource(ctx context.Context, r resource.Ref) (int64, error) {
	if err := f.live(); err != nil {
		return 0, err
	}
	return f.Store.InsertResource(ctx, r)
}

func (f *failing) UpdateResource(ctx context.Context, r resource.Ref) error {
	if err := f.live(); err != nil {
		return err
	}
	return f.Store.UpdateResource(ctx, r)
}

func (f *failing) DeleteResource(ctx context.Context, id string) error {
	if err := f.live(); err != nil {
		return err
	}
	return f.Store.DeleteResource(ctx, id)
}

func (f *failing) Resources(ctx context.Context, owner string) ([]resource.Ref, error) {
	if err := f.live(); err != nil {
		return nil, err
	}
	return f.Store.Resources(ctx, owner)
}

// Wherever an attachment or its end breaks off, the next daemon leaves nothing.
func TestBreaksOff(t *testing.T) {
	w := newWorld(t)
	for calls := 0; ; calls++ {
		rows := &failing{w.db, calls}
		w.copy = "" // that it cannot be kept is no error
		n, ledger := w.daemon(rows)
		ip, mac, err := n.Pick(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.Attach(t.Context(), "a", network.Attachment{IP: ip, MAC: mac, Name: "a"})
		if err == nil {
			err = errors.Join(ledger.ReleaseOwner(t.Context(), "a"), n.Detach(t.Context(), "a"))
		}
		died := rows.calls < 0
		if died == (err == nil) {
			t.Fatalf("after %d calls: died %v, %v", calls, died, err)
		}
		stopServing(t, n)
		n, ledger = w.daemon(w.db)
		err = errors.Join(ledger.Recover(t.Context(), func(owner string) bool { return owner == network.Owner }), n.Settle(t.Context()))
		if left := w.left(); err != nil || len(left) > 0 {
			t.Fatalf("after %d calls: left %v (%v)", calls, left, err)
		}
		if !died {
			return
		}
	}
}

// The subnet that was chosen stays, until the host has something else there.
func TestSubnet(t *testing.T) {
	w := newWorld(t)
	n, _ := w.daemon(w.db)
	first, _, err := n.Pick(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	n, _ = w.daemon(w.db)
	if fits, err := n.Fits(t.Context(), first); err != nil || !fits {
		t.Errorf("the next daemon has no room for %s (%v)", first, err)
	}
	const taken = "taken"
	if err := errors.Join(linux.AddLink(linux.LinkDummy, taken, nil), linux.SetAddress(taken, netip.PrefixFrom(first, 24))); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = linux.DeleteLink(taken) }()
	if fits, err := n.Fits(t.Context(), first); err != nil || fits {
		t.Errorf("there is room for %s beside the host's own network (%v)", first, err)
	}
	second, _, err := n.Pick(t.Context(), nil)
	if err != nil || strings.Join(strings.Split(second.String(), ".")[:2], ".") == strings.Join(strings.Split(first.String(), ".")[:2], ".") {
		t.Errorf("picked %s, then %s (%v)", first, second, err)
	}
	clash := network.New(network.Config{Installation: installation, Settings: w.db, Subnet: netip.PrefixFrom(first, 20).Masked()})
	if _, _, err := clash.Pick(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "the host has") {
		t.Errorf("a configured subnet that is taken: %v", err)
	}
}

// A name is looked up while the network goes, which waits for whoever is being answered.
func TestLookupMeanwhile(t *testing.T) {
	w := newWorld(t)
	n, ledger := w.daemon(w.db)
	_, a := w.attach(n, "a")
	g, err := n.Guest(a.IP)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	answered := make(chan struct{})
	for i := range 8 {
		asking.Go(func() {
			for ctx.Err() == nil {
				q := new(dns.Msg)
				q.SetQuestion("a.vm.", dns.TypeA)
				client := &dns.Client{Timeout: 100 * time.Millisecond}
				m, _, err := client.ExchangeContext(ctx, q, g.DNS.String()+":53")
				if i == 0 && err == nil && len(m.Answer) == 1 {
					answered <- struct{}{}
					i = -1
				}
			}
		})
	}
	<-answered
	release(t, n, ledger, "a")
	cancel()
	asking.Wait()
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A daemon in another network namespace would take what it does not see for gone.
func TestOtherNamespace(t *testing.T) {
	w := newWorld(t)
	n, ledger := w.daemon(w.db)
	w.attach(n, "a")
	other, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Do(func() error { return n.Check(t.Context()) }); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("from another namespace: %v", err)
	}
	if err := n.Check(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, n, ledger, "a")
	if err := other.Do(func() error { return n.Check(t.Context()) }); err != nil {
		t.Errorf("with nothing held: %v", err)
	}
}
