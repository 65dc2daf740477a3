package network

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"

	"banger/internal/linux"
	"banger/internal/resource"
)

// The kinds of resources of the network.
const (
	KindTap    = "tap"
	KindBridge = "bridge"
	KindDummy  = "dummy"
	KindTables = "nft"
	KindSysctl = "sysctl"
)

// Links are called by one of these, the installation's id and a random word.
const (
	tapPrefix    = "bt"
	bridgePrefix = "bb"
	dummyPrefix  = "bd"
	tablesPrefix = "banger_"
)

// newName returns the name of a new link.
func newName(prefix, installation string) string {
	name := prefix + installation
	return name + strings.ToLower(rand.Text())[:linux.MaxLinkName-len(name)]
}

func newTables(installation string) string {
	return tablesPrefix + installation + "_" + resource.RandomName(4)
}

// Kinds returns the kinds of resources that the network of an installation needs.
func Kinds(installation string) []resource.Kind {
	return []resource.Kind{
		links{KindTap, tapPrefix + installation, []linux.LinkKind{linux.LinkTap}, makeTap},
		links{KindBridge, bridgePrefix + installation, []linux.LinkKind{linux.LinkBridge}, makeBridge},
		links{KindDummy, dummyPrefix + installation, []linux.LinkKind{linux.LinkDummy, linux.LinkBridge}, makeDummy},
		tables{tablesPrefix + installation + "_"},
		sysctls{},
	}
}

// tapSpec is the spec of a tap, linkSpec that of a bridge or dummy link.
type (
	tapSpec  struct{ Bridge string }
	linkSpec struct {
		Address netip.Prefix
		MAC     string
		NetNS   string // where it was made
	}
)

// links is a kind of network interfaces.
type links struct {
	kind   string
	prefix string
	types  []linux.LinkKind
	make   func(ref resource.Ref) error
}

func (l links) Kind() string   { return l.kind }
func (l links) Volatile() bool { return true }

// Apart has a tap go while its VM does; its removal waits for grace periods of RCU.
func (l links) Apart() bool { return l.kind == KindTap }

// Acquire makes the link anew: half a link is of no use.
func (l links) Acquire(ctx context.Context, ref resource.Ref) error {
	if err := l.Release(ctx, ref); err != nil {
		return err
	}
	return l.make(ref)
}

func (l links) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	kind, err := linux.FindLink(ref.Name)
	switch {
	case err != nil || kind == "":
		return resource.Absent, err
	case !slices.Contains(l.types, kind):
		return resource.Foreign, nil
	}
	return resource.Ours, nil
}

func (l links) Release(ctx context.Context, ref resource.Ref) error {
	if presence, err := l.Inspect(ctx, ref); err != nil || presence != resource.Ours {
		return err
	}
	return linux.DeleteLink(ref.Name)
}

func (l links) List(context.Context) ([]resource.Ref, error) {
	names, err := linux.LinkNames(l.prefix, l.types...)
	var refs []resource.Ref
	for _, name := range names {
		refs = append(refs, resource.Ref{Kind: l.kind, Name: name})
	}
	return refs, err
}

func makeTap(ref resource.Ref) error {
	var spec tapSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return err
	}
	if err := linux.AddTap(ref.Name); err != nil {
		return err
	}
	return errors.Join(noIPv6(ref.Name), linux.JoinBridge(ref.Name, spec.Bridge), linux.SetLinkUp(ref.Name))
}

func makeBridge(ref resource.Ref) error {
	if err := makeLink(linux.LinkBridge, ref); err != nil {
		return err
	}
	return linux.SetSysctl(forwardingOf(ref.Name), "1")
}

func makeDummy(ref resource.Ref) error { return makeLink(linux.LinkDummy, ref) }

func makeLink(kind linux.LinkKind, ref resource.Ref) error {
	var spec linkSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return err
	}
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	if err := linux.AddLink(kind, ref.Name, mac); err != nil {
		return err
	}
	return errors.Join(noIPv6(ref.Name), linux.SetAddress(ref.Name, spec.Address), linux.SetLinkUp(ref.Name))
}

// noIPv6 keeps a link from having IPv6 of its own, where the kernel has IPv6.
func noIPv6(link string) error {
	err := linux.SetSysctl("net/ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tables is the kind of our nft tables, of which there are two of one name. What is
// in them follows from the attachments, so that they come with the first of these.
type tables struct{ prefix string }

func (t tables) Kind() string   { return KindTables }
func (t tables) Volatile() bool { return true }

func (t tables) Acquire(context.Context, resource.Ref) error { return nil }

func (t tables) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	names, err := linux.NftNames(ref.Name)
	if err != nil || !slices.Contains(names, ref.Name) {
		return resource.Absent, err
	}
	return resource.Ours, nil
}

func (t tables) Release(_ context.Context, ref resource.Ref) error { return linux.DeleteNft(ref.Name) }

func (t tables) List(context.Context) ([]resource.Ref, error) {
	names, err := linux.NftNames(t.prefix)
	var refs []resource.Ref
	for _, name := range names {
		refs = append(refs, resource.Ref{Kind: KindTables, Name: name})
	}
	return refs, err
}

// readBase finds in the ledger what all attachments share; nil where a part of it
// is missing, so that all is made anew.
func readBase(held []resource.Ref) (*base, error) {
	b := &base{}
	for _, ref := range held {
		switch ref.Kind {
		case KindBridge:
			var spec linkSpec
			if err := json.Unmarshal(ref.Spec, &spec); err != nil {
				return nil, fmt.Errorf("read the spec of bridge %s: %w", ref.Name, err)
			}
			b.bridge, b.subnet = ref.Name, spec.Address.Masked()
		case KindDummy:
			b.dummy = ref.Name
		case KindTables:
			b.tables = ref.Name
		case KindSysctl:
			b.opened = append(b.opened, linkOf(ref.Name))
		}
	}
	if b.bridge == "" || b.dummy == "" || b.tables == "" {
		return nil, nil
	}
	return b, nil
}
