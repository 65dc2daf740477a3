// Package network gives VMs a place on the host's network: an attachment is a tap,
// with the MAC and the IPv4 address that it is pinned to, NAT or not, and a name.
//
// While there is at least one attachment, the installation has a bridge with the
// taps as isolated ports, a dummy link with the address of the resolver (dns.go),
// and two nft tables (rules.go), which are rendered from the live attachments and
// brought up to date in one batch. All of it is in the ledger, outlives the daemon,
// and goes some seconds after the last attachment: taking it down keeps the kernel waiting
// for a tenth of a second, which the next VM need not pay for. Package vm says who is attached; this package
// knows owners in the ledger, never VMs.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
)

// Owner is the ledger's owner of what all attachments share.
const Owner = "network"

// tick is how often Run looks whether the host has changed under the network.
const tick = 5 * time.Second

// Attachment is what a VM is on the network.
type Attachment struct {
	IP   netip.Addr
	MAC  string
	NAT  bool   // whether it may reach what is beyond the host
	Name string // NAME.vm is its name in the DNS
}

// Guest is what a guest has to know of its place.
type Guest struct {
	Address netip.Prefix // its address with the length of the subnet's prefix
	Gateway netip.Addr
	DNS     netip.Addr
}

// Settings keeps choices that are made once.
type Settings interface {
	Setting(ctx context.Context, name string) (value string, found bool, err error)
	PutSetting(ctx context.Context, name, value string) error
}

// Config is what a Network is made of.
type Config struct {
	Installation string
	Ledger       *resource.Ledger // with the kinds of Kinds
	Settings     Settings
	Subnet       netip.Prefix   // of the VMs; the zero Prefix lets one be chosen
	Allow        []netip.Prefix // private networks that VMs may reach all the same
	Resolvers    []netip.Addr   // to which names are forwarded; the host's where empty
	Copy         string         // path of network.json; empty for none
	Linger       time.Duration  // how long, while Run runs, all of it stays that nobody is attached to
	Log          *slog.Logger
}

// Network is the network of one installation. It is safe for concurrent use.
type Network struct {
	Config
	plan plan

	mu       sync.Mutex
	base     *base             // nil while there is nothing on the host
	guests   map[string]*guest // by owner in the ledger
	adopting bool              // from the first Adopt on, until Settle
	dns      *dnsServer        // nil while there is none, or its port is taken
	copied   string            // the base of which Copy tells
	linger   time.Duration     // Linger while Run runs
	idle     *time.Timer       // until what nobody is attached to goes

	directory atomic.Pointer[directory] // what the resolver answers from
}

// guest is a live attachment.
type guest struct {
	Attachment
	mac net.HardwareAddr
	tap string
}

// base is what all attachments share.
type base struct {
	bridge, dummy, tables string
	subnet                netip.Prefix
	opened                []string // links between which only we let packets be forwarded
}

// New returns a Network that knows of no attachment yet: after the ledger has
// recovered, Adopt those that live and call Settle.
func New(c Config) *Network {
	idle := time.NewTimer(0)
	idle.Stop()
	return &Network{Config: c, guests: map[string]*guest{}, idle: idle}
}

// Alive returns the ledger's owners that are ours, for resource.Ledger.Recover.
func (n *Network) Alive(context.Context) (map[string]bool, error) {
	return map[string]bool{Owner: true}, nil
}

// Guest returns what the guest with an address has to know.
func (n *Network) Guest(ip netip.Addr) (Guest, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.base == nil || !n.base.subnet.Contains(ip) {
		return Guest{}, fmt.Errorf("address %s is not on the network", ip)
	}
	subnet := n.base.subnet
	return Guest{Address: netip.PrefixFrom(ip, subnet.Bits()), Gateway: gatewayOf(subnet), DNS: resolverOf(subnet)}, nil
}

// Attach makes a tap for owner, who gives it back by releasing what it holds in the
// ledger and calling Detach. It returns the tap's name.
func (n *Network) Attach(ctx context.Context, owner string, a Attachment) (tap string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		return "", fmt.Errorf("attach to the network: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("attach to the network: %w", err), n.settle(context.WithoutCancel(ctx)))
		}
	}()
	n.idle.Stop()
	if len(n.guests) == 0 { // nobody has looked after what lingers
		if err := n.mend(ctx); err != nil {
			return "", err
		}
	}
	if err := n.build(ctx); err != nil {
		return "", err
	}
	if !n.base.subnet.Contains(a.IP) {
		return "", fmt.Errorf("address %s is not in the subnet %s", a.IP, n.base.subnet)
	}
	tap = newName(tapPrefix, n.Installation)
	ref, err := n.Ledger.Acquire(ctx, owner, KindTap, tap, tapSpec{Bridge: n.base.bridge})
	if err != nil {
		return "", err
	}
	n.guests[owner] = &guest{Attachment: a, mac: mac, tap: tap}
	if err := n.sync(); err != nil {
		delete(n.guests, owner)
		return "", errors.Join(err, n.Ledger.Release(context.WithoutCancel(ctx), ref))
	}
	return tap, nil
}

// Adopt takes up an attachment that an earlier run of the daemon made for owner.
// Nothing on the host changes until Settle.
func (n *Network) Adopt(ctx context.Context, owner string, a Attachment) (tap string, err error) {
	held, err := n.Ledger.Held(ctx, owner)
	if err != nil {
		return "", err
	}
	for _, ref := range held {
		if ref.Kind == KindTap {
			tap = ref.Name
		}
	}
	mac, err := net.ParseMAC(a.MAC)
	if tap == "" || err != nil {
		return "", errors.Join(errors.New("adopt attachment: its VM has no tap"), err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.adopting {
		if err := n.load(ctx); err != nil {
			return "", err
		}
		n.adopting = true
	}
	n.guests[owner] = &guest{Attachment: a, mac: mac, tap: tap}
	return tap, nil
}

// Tap returns the name of the tap of owner; attached is false where it has none.
func (n *Network) Tap(owner string) (tap string, attached bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if g := n.guests[owner]; g != nil {
		return g.tap, true
	}
	return "", false
}

// Detach forgets the attachment of owner, who has released its tap. With the last one
// everything goes, after Linger.
func (n *Network) Detach(ctx context.Context, owner string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.guests[owner] == nil {
		return nil
	}
	delete(n.guests, owner)
	if n.adopting {
		return nil // others may be there that are not adopted yet
	}
	if len(n.guests) == 0 && n.linger > 0 {
		n.idle.Reset(n.linger)
		n.publish()
		return nil
	}
	return n.settle(ctx)
}

// Change makes what owner is on the network something else, at once: its NAT and
// its name. An owner that is not attached is no error.
func (n *Network) Change(_ context.Context, owner string, a Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.guests[owner]
	if g == nil {
		return nil
	}
	was := g.Attachment
	g.NAT, g.Name = a.NAT, a.Name
	defer n.publish()
	if was.NAT == a.NAT {
		return nil
	}
	if err := n.sync(); err != nil {
		g.Attachment = was
		return fmt.Errorf("change NAT of %s: %w", a.Name, err)
	}
	return nil
}

// Check refuses to serve from another network namespace than that in which the
// network is, as long as there is anything in it. It comes before the ledger recovers.
func (n *Network) Check(ctx context.Context) error {
	held, err := n.Ledger.Held(ctx, Owner)
	if err != nil {
		return err
	}
	boot, err := linux.BootID()
	if err != nil {
		return err
	}
	for _, ref := range held {
		var spec linkSpec
		if ref.Kind != KindBridge || ref.BootID != boot {
			continue
		}
		if err := json.Unmarshal(ref.Spec, &spec); err != nil {
			return fmt.Errorf("read the spec of bridge %s: %w", ref.Name, err)
		}
		if err := refuseElsewhere(spec.NetNS, "its bridge "+ref.Name); err != nil {
			return err
		}
	}
	return nil
}

// Settle makes the host agree with the attachments that were adopted: without any,
// what is left goes.
func (n *Network) Settle(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.load(ctx); err != nil {
		return err
	}
	n.adopting = false
	return n.settle(ctx)
}

func (n *Network) settle(ctx context.Context) error {
	if len(n.guests) > 0 {
		if err := n.mend(ctx); err != nil {
			return err
		}
		if err := n.build(ctx); err != nil {
			return err
		}
		return n.sync()
	}
	n.base = nil
	n.publish()
	n.stopDNS()
	if err := n.Ledger.ReleaseOwner(ctx, Owner); err != nil {
		return err
	}
	n.keepCopy(ctx)
	return nil
}

// mend makes those links again that somebody has removed, and takes the taps up.
func (n *Network) mend(ctx context.Context) error {
	if n.base == nil {
		return nil
	}
	made, err := n.Ledger.Repair(ctx, Owner, KindBridge, KindDummy)
	if err != nil || !slices.ContainsFunc(made, func(r resource.Ref) bool { return r.Kind == KindBridge }) {
		return err
	}
	return n.join(n.base.bridge)
}

// join makes the taps that there are ports of a bridge that is new.
func (n *Network) join(bridge string) error {
	var errs []error
	for _, g := range n.guests {
		if kind, err := linux.FindLink(g.tap); err == nil && kind != "" { // a VM without one is for the ledger's Check to report
			errs = append(errs, linux.JoinBridge(g.tap, bridge))
		}
	}
	return errors.Join(errs...)
}

// Run keeps the network as it should be while the host changes under it, until ctx
// ends. The resolver then stops; the rest stays, if somebody is attached.
func (n *Network) Run(ctx context.Context) {
	n.setLinger(n.Linger)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			n.setLinger(0)
			n.tend(context.WithoutCancel(ctx), true)
			n.mu.Lock()
			n.stopDNS()
			n.mu.Unlock()
			return
		case <-n.idle.C:
			n.tend(ctx, true)
		case <-ticker.C:
			n.tend(ctx, false)
		}
	}
}

func (n *Network) setLinger(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linger = d
}

// tend makes the host agree with what is attached; where that is nothing, only if it is
// over, so that everything is to go.
func (n *Network) tend(ctx context.Context, over bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.base == nil || over != (len(n.guests) == 0) {
		return
	}
	if err := n.settle(ctx); err != nil && ctx.Err() == nil {
		n.Log.Error("keep the network up", "err", err)
	}
}

// load reads from the ledger what there is on the host.
func (n *Network) load(ctx context.Context) error {
	held, err := n.Ledger.Held(ctx, Owner)
	if err != nil {
		return err
	}
	b, err := readBase(held)
	if err != nil {
		return err
	}
	n.base = b
	return nil
}

// build makes what all attachments share, where it is not there.
func (n *Network) build(ctx context.Context) (err error) {
	if n.base == nil {
		if n.base, err = n.make(ctx); err != nil {
			return err
		}
	}
	if err := n.openForwarding(ctx); err != nil {
		return err
	}
	n.keepCopy(ctx)
	n.startDNS()
	return nil
}

// make acquires the bridge, the dummy link and the tables.
func (n *Network) make(ctx context.Context) (b *base, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Ledger.ReleaseOwner(context.WithoutCancel(ctx), Owner))
		}
	}()
	subnet, err := n.subnet(ctx)
	if err != nil {
		return nil, err
	}
	b = &base{
		bridge: newName(bridgePrefix, n.Installation), dummy: newName(dummyPrefix, n.Installation),
		tables: newTables(n.Installation), subnet: subnet,
	}
	here, err := linux.NetNSID()
	if err != nil {
		return nil, err
	}
	address := netip.PrefixFrom(gatewayOf(subnet), subnet.Bits())
	if _, err := n.Ledger.Acquire(ctx, Owner, KindBridge, b.bridge, linkSpec{Address: address, MAC: newMAC().String(), NetNS: here}); err != nil {
		return nil, err
	}
	resolver := resolverOf(subnet)
	if _, err := n.Ledger.Acquire(ctx, Owner, KindDummy, b.dummy, linkSpec{Address: netip.PrefixFrom(resolver, 32), MAC: newMAC().String(), NetNS: here}); err != nil {
		return nil, err
	}
	if _, err := n.Ledger.Acquire(ctx, Owner, KindTables, b.tables, nil); err != nil {
		return nil, err
	}
	if err := n.join(b.bridge); err != nil { // the taps of VMs that run, where the rest was lost
		return nil, err
	}
	return b, nil
}

// sync brings the tables up to date.
func (n *Network) sync() error {
	if n.base == nil {
		return api.Errorf(api.CodeInternal, "set nft tables: there is no network")
	}
	n.publish()
	return linux.SyncNft(n.tables()...)
}
