package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/linux"

	"github.com/miekg/dns"
)

// legacyTables lists the tables of iptables-legacy, which are not nft's; empty or absent
// where nothing uses them.
const legacyTables = "/proc/net/ip_tables_names"

// Diagnose looks at what of the host is in the way of VMs' packets. It changes nothing,
// and needs of its Config no Ledger and no Log.
func (n *Network) Diagnose(ctx context.Context) []api.Finding {
	return slices.Concat(n.diagnoseSubnet(ctx), n.diagnoseForwarding(), n.diagnoseDNS(), diagnoseNames(ctx, newUpstream(n.Resolvers)))
}

func finding(check string, severity api.Severity, format string, args ...any) api.Finding {
	return api.Finding{Group: "network", Check: check, Severity: severity, Message: fmt.Sprintf(format, args...)}
}

func unknown(check string, err error) []api.Finding {
	f := finding(check, api.SeverityWarning, "%s", err)
	f.Meaning = "Whether the host is in the way of VMs is not known."
	return []api.Finding{f}
}

// ours tells whether a link is of this installation.
func (n *Network) ours(link string) bool {
	return slices.ContainsFunc([]string{bridgePrefix, dummyPrefix, tapPrefix}, func(p string) bool { return strings.HasPrefix(link, p+n.Installation) })
}

func (n *Network) diagnoseSubnet(ctx context.Context) []api.Finding {
	const check = "subnet"
	networks, err := linux.Networks()
	if err != nil {
		return unknown(check, err)
	}
	up := false
	var inTheWay []string
	subnet, err := n.settledSubnet(ctx)
	if err != nil {
		return unknown(check, err)
	}
	for _, used := range networks {
		switch {
		case n.ours(used.Link):
			up = true
		case subnet.IsValid() && subnet.Overlaps(used.Prefix):
			inTheWay = append(inTheWay, strings.TrimSuffix(used.String()+" by "+used.Link, " by "))
		}
	}
	slices.Sort(inTheWay)
	others := strings.Join(slices.Compact(inTheWay), ", ")
	switch {
	case !subnet.IsValid():
		return []api.Finding{finding(check, api.SeverityOK, "a free subnet will be chosen for the first VM")}
	case others == "":
		return []api.Finding{finding(check, api.SeverityOK, "the VMs' subnet %s is in nobody's way", subnet)}
	case up:
		f := finding(check, api.SeverityError, "the VMs' subnet %s overlaps %s", subnet, others)
		f.Meaning = "VMs and these networks cannot be told apart: the host reaches only one of them. The other came up after the VMs."
		f.Advice = "Stop the VMs that are on the network: with the next start they get a free subnet. Where network.subnet is configured, choose another one."
		return []api.Finding{f}
	case n.Subnet.IsValid():
		f := finding(check, api.SeverityError, "the configured subnet %s overlaps %s", subnet, others)
		f.Meaning = "VMs on the network do not start."
		f.Advice = "Configure another network.subnet, or none to have a free one chosen."
		return []api.Finding{f}
	}
	f := finding(check, api.SeverityWarning, "the VMs' subnet %s overlaps %s", subnet, others)
	f.Meaning = "The next start of a VM chooses a free subnet, and gives the VMs other addresses."
	f.Advice = "Nothing, unless the addresses matter to you: then configure network.subnet."
	return []api.Finding{f}
}

// settledSubnet is the subnet that was configured or chosen; the zero Prefix where
// none was yet.
func (n *Network) settledSubnet(ctx context.Context) (netip.Prefix, error) {
	if n.Subnet.IsValid() {
		return n.Subnet, nil
	}
	kept, found, err := n.Settings.Setting(ctx, subnetSetting)
	if err != nil || !found {
		return netip.Prefix{}, err
	}
	return netip.ParsePrefix(kept)
}

func (n *Network) diagnoseForwarding() []api.Finding {
	const check = "forwarding"
	droppers, err := linux.Droppers()
	if err != nil {
		return unknown(check, err)
	}
	var out []api.Finding
	links := bridgePrefix + n.Installation
	for _, d := range droppers {
		if strings.HasPrefix(d.Table, tablesPrefix) || d.Admits(links) {
			continue
		}
		f := finding(check, api.SeverityWarning, "chain %s of the firewall's table %s drops what is forwarded", d.Chain, d.Table)
		f.Meaning = "VMs do not reach what is beyond the host."
		f.Advice = "Let their packets through, which banger's own rules restrict: " + letThrough(d, links)
		out = append(out, f)
	}
	if text, err := os.ReadFile(legacyTables); err == nil && strings.Contains(string(text), "filter") {
		f := finding(check, api.SeverityWarning, "iptables-legacy has a table filter")
		f.Meaning = "Whether its chain FORWARD drops the packets of VMs cannot be seen by netlink."
		f.Advice = "Look at: iptables-legacy -S FORWARD"
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, finding(check, api.SeverityOK, "no firewall drops what VMs send beyond the host"))
	}
	return out
}

// letThrough is how to have a chain accept the packets from and to links.
func letThrough(d linux.Dropper, links string) string {
	chain := d.Chain
	if d.Docker {
		chain = "DOCKER-USER" // which Docker leaves to others
	}
	if d.Table == "filter" { // that of iptables
		return fmt.Sprintf("iptables -I %[1]s -i '%[2]s+' -j ACCEPT; iptables -I %[1]s -o '%[2]s+' -j ACCEPT", chain, links)
	}
	return fmt.Sprintf("nft insert rule %[1]s %[2]s %[3]s 'iifname \"%[4]s*\" accept'; nft insert rule %[1]s %[2]s %[3]s 'oifname \"%[4]s*\" accept'",
		d.Family, d.Table, chain, links)
}

// diagnoseDNS looks at the guests' resolver, where this process is to run it.
func (n *Network) diagnoseDNS() []api.Finding {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.base == nil:
		return nil
	case n.dns != nil:
		return []api.Finding{finding("resolver", api.SeverityOK, "the guests' resolver answers on %s", resolverOf(n.base.subnet))}
	}
	f := finding("resolver", api.SeverityError, "the guests' resolver does not run: port %d of %s is taken", dnsPort, resolverOf(n.base.subnet))
	f.Meaning = "VMs have no names and resolve none."
	f.Advice = "Find the server that listens on all addresses (ss -lnp 'sport = 53') and have it listen on its own only."
	return []api.Finding{f}
}

// diagnoseNames asks those to whom guests' questions are forwarded.
func diagnoseNames(ctx context.Context, u *upstream) []api.Finding {
	const check = "names"
	q := new(dns.Msg)
	q.SetQuestion(".", dns.TypeNS)
	servers := strings.Join(u.list(), ", ")
	answer, err := u.ask(ctx, q, "udp")
	switch {
	case ctx.Err() != nil:
		return unknown(check, ctx.Err())
	case err == nil && answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused:
		return []api.Finding{finding(check, api.SeverityOK, "what VMs ask for is known to the host's resolvers, %s", servers)}
	}
	f := finding(check, api.SeverityWarning, "no resolver is known to which VMs' questions could be forwarded")
	f.Advice = "Name one in /etc/resolv.conf, or for VMs alone as network.resolvers in the configuration."
	f.Meaning = "VMs resolve no names but their own."
	switch {
	case servers == "":
	case err == nil: // systemd-resolved says so where it has no upstream
		f.Message = fmt.Sprintf("the host's resolvers, %s, answer with %s", servers, dns.RcodeToString[answer.Rcode])
		f.Advice = "Look at what they have for upstreams; of systemd-resolved: resolvectl status."
	default:
		f.Message = fmt.Sprintf("the host's resolvers, %s, do not answer", servers)
		f.Advice = "Look whether they run and are reached; systemd-resolved: systemctl status systemd-resolved."
	}
	return []api.Finding{f}
}
