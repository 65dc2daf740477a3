package registry

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
)

const (
	dialPatience = 15 * time.Second
	maxRedirects = 10
)

// guard is the way to a registry. It goes to the host that the caller named; from
// there to others only where these are as public as that one, so that no registry
// makes a daemon ask what is in its own network. Without TLS it goes only where that
// is allowed.
type guard struct {
	host     string // with its port, if it was given one
	plain    bool
	patience Patience
	http     *http.Transport

	mu  sync.Mutex
	met *reach // where the registry itself was, at its farthest; nil before it was spoken to
}

func newGuard(host string, insecure bool, p Patience) *guard {
	g := &guard{host: host, plain: insecure || isLoopback(host), patience: p.orUsual()}
	g.http = &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: g.dial, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: dialPatience, ResponseHeaderTimeout: g.patience.Answer, MaxResponseHeaderBytes: 256 << 10,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
	}
	return g
}

// RoundTrip implements http.RoundTripper. Whoever reads the answer, the body of one that
// is no layer is bounded in size and time, and every body in how slowly it may come.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.plain {
		return nil, api.Errorf(api.CodePermissionDenied, "%s would be spoken to without TLS", req.URL.Host).
			WithHint("allow that in the configuration, with image.insecure = [%q]", g.host)
	}
	resp, err := g.http.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = paced(resp.Body, g.patience, isLayer(resp))
	return resp, nil
}

// redirect decides whether to go where a registry leads.
func (g *guard) redirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= maxRedirects:
		return api.Errorf(api.CodeInvalid, "the registry leads in circles")
	case req.URL.Scheme != "https" && req.URL.Scheme != "http":
		return api.Errorf(api.CodePermissionDenied, "the registry leads to %s, which is not http", req.URL.Redacted())
	case req.URL.Scheme == "http" && via[0].URL.Scheme == "https":
		return api.Errorf(api.CodePermissionDenied, "the registry leads from TLS to %s", req.URL.Redacted())
	}
	return nil
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialPatience}
	switch {
	case g.named(address):
		conn, err := d.DialContext(ctx, network, address)
		if err == nil {
			g.meet(conn.RemoteAddr())
		}
		return conn, err
	case !viaProxy(address):
		most := g.reach()
		d.Control = func(_, to string, _ syscall.RawConn) error {
			addr, err := netip.ParseAddrPort(to)
			if err != nil {
				return err
			}
			if near := reachOf(addr.Addr()); near > most || near == link {
				return api.Errorf(api.CodePermissionDenied, "the registry %s leads to %s, which is not public", g.host, address)
			}
			return nil
		}
	}
	return d.DialContext(ctx, network, address)
}

// meet remembers where the registry was found. Its name may have several addresses, of
// which those nearer to this host need not be the registry's: the farthest counts.
func (g *guard) meet(remote net.Addr) {
	to, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if near := reachOf(to.Addr()); g.met == nil || near < *g.met {
		g.met = &near
	}
}

// reach is how near the registry itself is; public where nobody has got there yet, as
// behind a proxy.
func (g *guard) reach() reach {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.met == nil {
		return public
	}
	return *g.met
}

// named says whether an address is that of the registry itself.
func (g *guard) named(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && (address == g.host || host == g.host)
}

// viaProxy says whether an address is that of the proxy that the daemon's environment
// names.
func viaProxy(address string) bool {
	for _, url := range []string{"https://example.org", "http://example.org"} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			continue
		}
		proxy, err := http.ProxyFromEnvironment(req)
		if err != nil || proxy == nil {
			continue
		}
		port := map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[proxy.Scheme]
		if address == net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), port, "80")) {
			return true
		}
	}
	return false
}

// reach says how near to this host an address is.
type reach int

const (
	public  reach = iota
	private       // of a network that is not everybody's
	link          // of this wire alone, where clouds tell secrets: never led to
	own
)

// nearby are the networks that are not public and that netip does not know as such.
var nearby = []netip.Prefix{ // RFC 6890
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("fec0::/10"),
}

// within are the networks of IPv6 whose addresses have one of IPv4 in them, by where it
// begins.
var within = map[netip.Prefix]int{
	netip.MustParsePrefix("64:ff9b::/96"): 12, // RFC 6052
	netip.MustParsePrefix("2002::/16"):    2,  // RFC 3056
}

func reachOf(a netip.Addr) reach {
	a = a.Unmap()
	for net, at := range within {
		if net.Contains(a) {
			b := a.As16()
			a = netip.AddrFrom4([4]byte(b[at : at+4]))
			break
		}
	}
	switch {
	case a.IsLoopback() || a.IsUnspecified():
		return own
	case a.IsLinkLocalUnicast():
		return link
	case a.IsPrivate() || a.IsMulticast() || !a.IsGlobalUnicast() || slices.ContainsFunc(nearby, func(p netip.Prefix) bool { return p.Contains(a) }):
		return private
	}
	return public
}

func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
