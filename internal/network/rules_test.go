package network

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/hosttest"
	"banger/internal/linux"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

// example is a network with one guest.
func example() []linux.NftTable {
	b := base{bridge: "bb0", tables: "banger_test", subnet: netip.MustParsePrefix("10.61.0.0/20"), opened: []string{"eth0"}}
	g := &guest{
		Attachment: Attachment{IP: netip.MustParseAddr("10.61.0.2"), NAT: true}, tap: "bt0",
		mac: net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01},
	}
	allow := []netip.Prefix{netip.MustParsePrefix("192.168.178.0/24")}
	return []linux.NftTable{routing(b, allow, []*guest{g}), guarding(b.tables, []*guest{g})}
}

// The tables are what testdata/tables.nft says, as we print them and as the kernel
// has them by the word of nft.
func TestTables(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("testdata", "tables.nft"))
	if err != nil {
		t.Fatal(err)
	}
	var rendered strings.Builder
	for _, table := range example() {
		rendered.WriteString(table.String())
	}
	if rendered.String() != string(want) {
		t.Errorf("rendered:\n%s", rendered.String())
	}
	if os.Getuid() != 0 {
		t.Skip("nft tables need root")
	}
	if err := linux.AddTap("bt0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = linux.DeleteLink("bt0") })
	t.Cleanup(func() { _ = linux.DeleteNft("banger_test") })
	for range 2 { // the second time changes nothing
		if err := linux.SyncNft(example()...); err != nil {
			t.Fatal(err)
		}
		var listed strings.Builder
		for _, family := range []string{"inet", "netdev"} {
			out, err := exec.Command("nft", "--stateless", "list", "table", family, "banger_test").CombinedOutput()
			if err != nil {
				t.Fatalf("nft: %v: %s", err, out)
			}
			listed.WriteString(string(out))
		}
		if got := comparable(listed.String()); got != comparable(string(want)) {
			t.Errorf("the kernel has:\n%s", got)
		}
	}
}

// comparable is a listing without the marks of layouts and without how nft folds
// elements.
func comparable(text string) string {
	var out []string
	marked := false
	for line := range strings.Lines(strings.ReplaceAll(text, ",\n", ",")) {
		line = strings.Join(strings.Fields(strings.ReplaceAll(line, ",", ", ")), " ")
		if marked = marked && line != "" || strings.HasPrefix(line, "chain layout_"); marked {
			marked = line != "}"
			continue
		}
		if line != "" {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func TestDisjoint(t *testing.T) {
	p := netip.MustParsePrefix
	got := disjoint([]netip.Prefix{p("10.1.0.0/16"), p("10.0.0.0/8"), p("192.168.1.7/24"), p("192.168.1.0/24")})
	if len(got) != 2 || got[0] != p("10.0.0.0/8") || got[1] != p("192.168.1.0/24") {
		t.Errorf("got %v", got)
	}
}

func TestChoose(t *testing.T) {
	p := netip.MustParsePrefix
	for _, test := range []struct {
		used []netip.Prefix
		in   netip.Prefix
		free bool
	}{
		{nil, p("10.0.0.0/8"), true},
		{[]netip.Prefix{p("10.0.0.0/8")}, p("172.16.0.0/12"), true},
		{[]netip.Prefix{p("10.0.0.0/8"), p("172.16.0.0/12")}, p("192.168.0.0/16"), true},
		{[]netip.Prefix{p("10.0.0.0/8"), p("172.16.0.0/12"), p("192.168.0.0/16")}, netip.Prefix{}, false},
	} {
		got, free := choose(candidates("1a2b3c4d"), test.used)
		if free != test.free || free && (!test.in.Overlaps(got) || overlaps(got, test.used) || got != got.Masked()) {
			t.Errorf("beside %v: %v, %v", test.used, got, free)
		}
	}
}

// Every address of a subnet is picked before one is picked again.
func TestPick(t *testing.T) {
	subnet := netip.MustParsePrefix("10.9.8.0/29") // 8 addresses, of which 4 are for guests
	var p plan
	seen := map[netip.Addr]bool{}
	var first netip.Addr
	for i := range 4 {
		ip, ok := p.next(subnet, nil)
		if !ok || seen[ip] || !usable(subnet, ip) || !subnet.Contains(ip) {
			t.Fatalf("pick %d: %v, %v after %v", i, ip, ok, seen)
		}
		if i == 0 {
			first = ip
		}
		seen[ip] = true
	}
	if ip, ok := p.next(subnet, nil); !ok || ip != first {
		t.Errorf("after all of them: %v, want the one that was given back longest ago, %v", ip, first)
	}
	if ip, ok := p.next(subnet, seen); ok {
		t.Errorf("all are taken, and %v is picked", ip)
	}
}
