package linux

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Dropper is a chain of somebody's that drops the packets which are forwarded, unless
// a rule accepts them.
type Dropper struct {
	Family       string // as nft(8) names it: ip, inet
	Table, Chain string
	Docker       bool // its table has the chain DOCKER-USER, which is there for others' rules

	from, to []string // beginnings of names of links from or to which packets are accepted
}

// Admits tells whether the table accepts packets both from and to links whose names
// begin with prefix, without a look at what else its rules ask of them.
func (d Dropper) Admits(prefix string) bool {
	begins := func(names []string) bool {
		for _, name := range names {
			if strings.HasPrefix(prefix, name) || strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	return begins(d.from) && begins(d.to)
}

// Droppers returns the nft chains for forwarded IPv4 packets whose policy is to drop;
// iptables-nft(8) makes such chains too, iptables-legacy does not.
func Droppers() ([]Dropper, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	chains, err := dump(func() ([]*nftables.Chain, error) { return conn.ListChains() })
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	var out []Dropper
	for _, c := range chains {
		ipv4 := c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet
		if !ipv4 || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		d := Dropper{Family: "inet", Table: c.Table.Name, Chain: c.Name}
		if c.Table.Family == nftables.TableFamilyIPv4 {
			d.Family = "ip"
		}
		for _, other := range chains {
			if other.Table.Name != c.Table.Name || other.Table.Family != c.Table.Family {
				continue
			}
			d.Docker = d.Docker || other.Name == "DOCKER-USER"
			rules, err := conn.GetRules(other.Table, other)
			if err != nil {
				return nil, fmt.Errorf("list rules of nft chain %s %s: %w", other.Table.Name, other.Name, err)
			}
			for _, r := range rules {
				d.learn(r.Exprs)
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// learn takes in a rule that accepts packets by the name of a link.
func (d *Dropper) learn(exprs []expr.Any) {
	var key expr.MetaKey
	var from, to string
	accepts := false
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			key = e.Key
		case *expr.Cmp:
			name := string(bytes.TrimRight(e.Data, "\x00"))
			switch {
			case e.Op != expr.CmpOpEq:
			case key == expr.MetaKeyIIFNAME:
				from = name
			case key == expr.MetaKeyOIFNAME:
				to = name
			}
			key = 0
		case *expr.Verdict:
			accepts = e.Kind == expr.VerdictAccept
		}
	}
	if accepts && from != "" {
		d.from = append(d.from, from)
	}
	if accepts && to != "" {
		d.to = append(d.to, to)
	}
}
