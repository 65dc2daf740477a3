package network_test

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/network"
)

// finds looks for a finding of Diagnose.
func (w *world) finds(n *network.Network, check string, severity api.Severity, message string) api.Finding {
	w.t.Helper()
	all := n.Diagnose(w.t.Context())
	i := slices.IndexFunc(all, func(f api.Finding) bool {
		return f.Check == check && f.Severity == severity && strings.Contains(f.Message, message)
	})
	if i < 0 {
		w.t.Fatalf("no %s of %s about %q in %+v", severity, check, message, all)
	}
	return all[i]
}

// TestDiagnoseSubnet has a route come up that overlaps the VMs' subnet.
func TestDiagnoseSubnet(t *testing.T) {
	w := newWorld(t)
	n, ledger := w.daemon(w.db)
	w.finds(n, "subnet", api.SeverityOK, "will be chosen")
	_, a := w.attach(n, "vm/1")
	w.finds(n, "subnet", api.SeverityOK, "in nobody's way")
	w.finds(n, "resolver", api.SeverityOK, "answers on")

	overlapping := netip.PrefixFrom(a.IP, 26).Masked()
	if err := linux.AddRoute(overlapping, netip.MustParseAddr(hosttest.GatewayAddress)); err != nil {
		t.Fatal(err)
	}
	w.finds(n, "subnet", api.SeverityError, overlapping.String()+" by "+hosttest.Uplink)
	if err := ledger.ReleaseOwner(t.Context(), "vm/1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), "vm/1"); err != nil {
		t.Fatal(err)
	}
	w.finds(n, "subnet", api.SeverityWarning, overlapping.String())
	configured := network.New(network.Config{Installation: installation, Settings: w.db, Subnet: netip.PrefixFrom(a.IP, 20).Masked()})
	w.finds(configured, "subnet", api.SeverityError, "the configured subnet")
	if out, err := exec.Command("ip", "route", "delete", overlapping.String()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.finds(n, "subnet", api.SeverityOK, "in nobody's way")
}

// TestDiagnoseForwarding has firewalls drop what is forwarded, until the advice is
// followed.
func TestDiagnoseForwarding(t *testing.T) {
	w := newWorld(t)
	n, _ := w.daemon(w.db)
	sh := func(line string) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	w.finds(n, "forwarding", api.SeverityOK, "no firewall")
	sh(`nft add table inet fw; nft 'add chain inet fw chain1 { type filter hook forward priority 0; policy drop; }'
		nft add rule inet fw chain1 iifname '"other*"' accept; nft add rule inet fw chain1 oifname '"other*"' accept`)
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "fw").Run() })
	f := w.finds(n, "forwarding", api.SeverityWarning, "chain chain1 of the firewall's table fw")
	_, commands, _ := strings.Cut(f.Advice, ": ")
	sh(commands)
	w.finds(n, "forwarding", api.SeverityOK, "no firewall")
	sh("nft delete table inet fw")

	// As Docker does it, by iptables-nft.
	sh(`nft add table ip filter; nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
		nft add chain ip filter DOCKER-USER; nft add rule ip filter FORWARD jump DOCKER-USER`)
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "ip", "filter").Run() })
	f = w.finds(n, "forwarding", api.SeverityWarning, "chain FORWARD of the firewall's table filter")
	if !strings.Contains(f.Advice, "iptables -I DOCKER-USER -i 'bb"+installation+"+' -j ACCEPT") {
		t.Errorf("advice %q", f.Advice)
	}
	sh(`nft insert rule ip filter DOCKER-USER iifname '"bb` + installation + `*"' accept`)
	w.finds(n, "forwarding", api.SeverityWarning, "FORWARD") // packets come back by the other one
	sh(`nft insert rule ip filter DOCKER-USER oifname '"bb` + installation + `*"' accept`)
	w.finds(n, "forwarding", api.SeverityOK, "no firewall")
	sh("nft delete table ip filter")

	// A chain that accepts is in nobody's way.
	sh(`nft add table ip open; nft 'add chain ip open chain1 { type filter hook forward priority 0; policy accept; }'`)
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "ip", "open").Run() })
	w.finds(n, "forwarding", api.SeverityOK, "no firewall")
}
