package linux

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// NftFamily says which packets the chains of a table see; nft(8), "Address families".
type NftFamily string

// The families.
const (
	NftInet   NftFamily = "inet"
	NftNetdev NftFamily = "netdev"
)

var nftFamilies = map[NftFamily]nftables.TableFamily{
	NftInet: nftables.TableFamilyINet, NftNetdev: nftables.TableFamilyNetdev,
}

// NftTable describes a table. Its chains and their rules, and the elements of its
// interval sets, are its layout, which is made as a whole; what comes and goes are
// the elements of its other sets and the chains of single devices. See SyncNft.
type NftTable struct {
	Family NftFamily
	Name   string
	Sets   []NftSet
	Chains []NftChain
}

// NftSet is a set of the concatenations of one or more fields. The elements of one
// with Interval are prefixes of IPv4 addresses that don't overlap.
type NftSet struct {
	Name     string
	Fields   []NftField
	Interval bool
	Elements []NftElement
}

// NftField is the type of a part of a set's elements; nft(8), "Data types".
type NftField struct {
	name  string
	nft   nftables.SetDatatype
	bytes int // in a key, where it is padded to a multiple of four
}

// The fields.
var (
	NftLink = NftField{"ifname", nftables.TypeIFName, unix.IFNAMSIZ}
	NftMAC  = NftField{"ether_addr", nftables.TypeEtherAddr, 8}
	NftIPv4 = NftField{"ipv4_addr", nftables.TypeIPAddr, 4}
)

// NftElement is an element of a set.
type NftElement struct {
	text     string
	key, end []byte // end: the first address after a prefix
}

// NftKey returns the element with the given parts: the name of a link (string), a
// net.HardwareAddr or an IPv4 netip.Addr each.
func NftKey(parts ...any) NftElement {
	var e NftElement
	var texts []string
	for _, part := range parts {
		switch p := part.(type) {
		case string:
			e.key = append(e.key, nftName(p)...)
			texts = append(texts, fmt.Sprintf("%q", p))
		case net.HardwareAddr:
			e.key = append(append(e.key, p...), 0, 0)
			texts = append(texts, p.String())
		case netip.Addr:
			e.key = append(e.key, p.AsSlice()...)
			texts = append(texts, p.String())
		}
	}
	e.text = strings.Join(texts, " . ")
	return e
}

// NftPrefix returns the element of an interval set that holds a prefix's addresses.
func NftPrefix(p netip.Prefix) NftElement {
	p = p.Masked()
	first := p.Addr().As4()
	last := first
	for bit := p.Bits(); bit < 32; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	e := NftElement{text: p.String(), key: first[:]}
	if p.IsSingleIP() {
		e.text = p.Addr().String()
	}
	if end := netip.AddrFrom4(last).Next(); end.IsValid() {
		e.end = end.AsSlice()
	}
	return e
}

// nftName is the name of a link as it is in a register.
func nftName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// NftChain is a chain: one that packets enter by themselves has a Base.
type NftChain struct {
	Name  string
	Base  *NftBase
	Rules []NftRule
}

// NftBase says where packets enter a chain, and what becomes of one that the rules
// let through.
type NftBase struct {
	Type     string // filter or nat
	Hook     string // forward, input, postrouting or, with a Device, ingress
	Device   string
	Priority string // as nft(8) names it: filter, mangle or srcnat
	Drop     bool   // the policy
}

var nftHooks = map[string]nftables.ChainHook{
	"forward": *nftables.ChainHookForward, "input": *nftables.ChainHookInput,
	"postrouting": *nftables.ChainHookPostrouting, "ingress": *nftables.ChainHookIngress,
}

var nftPriorities = map[string]nftables.ChainPriority{
	"filter": *nftables.ChainPriorityFilter, "mangle": *nftables.ChainPriorityMangle, "srcnat": *nftables.ChainPriorityNATSource,
}

// NftRule is a rule: its statements are carried out one after the other until one
// does not match.
type NftRule []NftStatement

// NftStatement is a match or an action, as text and as the kernel takes it.
type NftStatement struct {
	text  string
	exprs []expr.Any
}

func (r NftRule) String() string {
	var texts []string
	for _, s := range r {
		texts = append(texts, s.text)
	}
	return strings.Join(texts, " ")
}

// String is the table as `nft --stateless list table` shows it.
func (t NftTable) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	var parts []string
	for _, s := range t.Sets {
		parts = append(parts, s.text(true))
	}
	for _, c := range t.Chains {
		parts = append(parts, c.text())
	}
	b.WriteString(strings.Join(parts, "\n"))
	b.WriteString("}\n")
	return b.String()
}

func (s NftSet) text(elements bool) string {
	var types, all []string
	for _, f := range s.Fields {
		types = append(types, f.name)
	}
	text := fmt.Sprintf("\tset %s {\n\t\ttype %s\n", s.Name, strings.Join(types, " . "))
	if s.Interval {
		text += "\t\tflags interval\n"
	}
	for _, e := range s.Elements {
		all = append(all, e.text)
	}
	if elements && len(all) > 0 {
		text += "\t\telements = { " + strings.Join(all, ",\n\t\t\t     ") + " }\n"
	}
	return text + "\t}\n"
}

func (c NftChain) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Base != nil {
		device, policy := "", "accept"
		if c.Base.Device != "" {
			device = fmt.Sprintf(" device %q", c.Base.Device)
		}
		if c.Base.Drop {
			policy = "drop"
		}
		fmt.Fprintf(&b, "\t\ttype %s hook %s%s priority %s; policy %s;\n", c.Base.Type, c.Base.Hook, device, c.Base.Priority, policy)
	}
	for _, r := range c.Rules {
		fmt.Fprintf(&b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
	return b.String()
}

// ofDevice tells whether a chain comes and goes with a device.
func (c NftChain) ofDevice() bool { return c.Base != nil && c.Base.Device != "" }

// nftMark begins the name of the empty chain by which a table tells its layout.
const nftMark = "layout_"

// mark names the layout of a table.
func (t NftTable) mark() string {
	h := fnv.New64a()
	for _, s := range t.Sets {
		fmt.Fprint(h, s.text(s.Interval))
	}
	for _, c := range t.Chains {
		if !c.ofDevice() {
			fmt.Fprint(h, c.text())
		}
	}
	return fmt.Sprintf("%s%016x", nftMark, h.Sum64())
}

func (s NftSet) elements(of []NftElement) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range of {
		out = append(out, nftables.SetElement{Key: e.key})
		if s.Interval && e.end != nil {
			out = append(out, nftables.SetElement{Key: e.end, IntervalEnd: true})
		}
	}
	return out
}

func (s NftSet) nft(table *nftables.Table) *nftables.Set {
	set := &nftables.Set{Table: table, Name: s.Name, Interval: s.Interval, Concatenation: len(s.Fields) > 1}
	var types []nftables.SetDatatype
	for _, f := range s.Fields {
		types = append(types, f.nft)
	}
	set.KeyType = types[0]
	if s.Fields[0] == NftLink && len(types) == 1 {
		set.KeyByteOrder = binaryutil.NativeEndian // for nft to show it
	}
	if len(types) > 1 {
		set.KeyType = nftables.MustConcatSetType(types...)
	}
	return set
}

func nftTable(family NftFamily, name string) *nftables.Table {
	return &nftables.Table{Family: nftFamilies[family], Name: name}
}

// addChain adds a chain without its rules, which may go to chains that come later.
func (c NftChain) add(conn *nftables.Conn, table *nftables.Table) *nftables.Chain {
	chain := &nftables.Chain{Table: table, Name: c.Name}
	if c.Base != nil {
		hook, priority, policy := nftHooks[c.Base.Hook], nftPriorities[c.Base.Priority], nftables.ChainPolicyAccept
		if c.Base.Drop {
			policy = nftables.ChainPolicyDrop
		}
		chain.Type, chain.Hooknum, chain.Priority, chain.Policy = nftables.ChainType(c.Base.Type), &hook, &priority, &policy
		chain.Device = c.Base.Device
	}
	return conn.AddChain(chain)
}

func (c NftChain) addRules(conn *nftables.Conn, chain *nftables.Chain) {
	for _, r := range c.Rules {
		var exprs []expr.Any
		for _, s := range r {
			exprs = append(exprs, s.exprs...)
		}
		conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
	}
}

// missing returns what of a is not in b.
func missing(a, b []NftElement) []NftElement {
	return slices.DeleteFunc(slices.Clone(a), func(e NftElement) bool {
		return slices.ContainsFunc(b, func(f NftElement) bool { return bytes.Equal(e.key, f.key) })
	})
}
