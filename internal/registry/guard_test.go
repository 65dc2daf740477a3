package registry

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"banger/api"
)

// TestGuardStaysOutside has a public registry lead to this host and its network.
func TestGuardStaysOutside(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := newGuard("203.0.113.7:5000", false)
	if _, err := g.dial(t.Context(), "tcp", l.Addr().String()); api.CodeOf(err) != api.CodePermissionDenied {
		t.Errorf("to this host: %v", err)
	}
	local := newGuard("127.0.0.1:5000", false)
	conn, err := local.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("from this host to this host: %v", err)
	}
	conn.Close()
	req, err := http.NewRequest(http.MethodGet, "http://203.0.113.7:5000/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.RoundTrip(req); api.CodeOf(err) != api.CodePermissionDenied || !strings.Contains(api.AsError(err).Hint, "image.insecure") {
		t.Errorf("without TLS: %v", err)
	}
}

func TestReach(t *testing.T) {
	for addr, want := range map[string]reach{
		"127.0.0.1": own, "::1": own, "0.0.0.0": own, "::ffff:127.0.0.1": own, "10.1.2.3": private, "192.168.0.1": private, "fe80::1": private,
		"fd00::1": private, "169.254.169.254": private, "224.0.0.1": private, "203.0.113.7": public, "2001:db8::1": public,
	} {
		if got := reachOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}
