package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"banger/api"
)

const (
	dialPatience   = 15 * time.Second
	answerPatience = 30 * time.Second // until the header of an answer
	maxRedirects   = 10
)

// guard is the way to a registry. It goes to the host that the caller named; from
// there to others only where these are as public as that one, so that no registry
// makes a daemon ask what is in its own network. Without TLS it goes only where that
// is allowed.
type guard struct {
	host  string // with its port, if it was given one
	plain bool
	http  *http.Transport
}

func newGuard(host string, insecure bool) *guard {
	g := &guard{host: host, plain: insecure || isLoopback(host)}
	g.http = &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: g.dial, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: dialPatience, ResponseHeaderTimeout: answerPatience, MaxResponseHeaderBytes: 256 << 10,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
	}
	return g
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.plain {
		return nil, api.Errorf(api.CodePermissionDenied, "%s would be spoken to without TLS", req.URL.Host).
			WithHint("allow that in the configuration, with image.insecure = [%q]", g.host)
	}
	return g.http.RoundTrip(req)
}

// redirect decides whether to go where a registry leads.
func (g *guard) redirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= maxRedirects:
		return errors.New("the registry leads in circles")
	case req.URL.Scheme != "https" && req.URL.Scheme != "http":
		return fmt.Errorf("the registry leads to %s, which is not http", req.URL.Redacted())
	case req.URL.Scheme == "http" && via[0].URL.Scheme == "https":
		return fmt.Errorf("the registry leads from TLS to %s", req.URL.Redacted())
	}
	return nil
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialPatience}
	if !g.named(address) && !viaProxy(address) {
		most := g.reach(ctx)
		d.Control = func(_, to string, _ syscall.RawConn) error {
			addr, err := netip.ParseAddrPort(to)
			if err != nil {
				return err
			}
			if reachOf(addr.Addr()) > most {
				return api.Errorf(api.CodePermissionDenied, "the registry %s leads to %s, which is not public", g.host, address)
			}
			return nil
		}
	}
	return d.DialContext(ctx, network, address)
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
		if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy != nil && strings.HasPrefix(address, proxy.Host) {
			return true
		}
	}
	return false
}

// reach says how near to this host an address is.
type reach int

const (
	public reach = iota
	private
	own
)

func reachOf(a netip.Addr) reach {
	a = a.Unmap()
	switch {
	case a.IsLoopback() || a.IsUnspecified():
		return own
	case a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || !a.IsGlobalUnicast():
		return private
	}
	return public
}

// reach is how near the registry itself is. Cloud metadata, link-local, is never a
// registry.
func (g *guard) reach(ctx context.Context) reach {
	host := g.host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return public
	}
	most := public
	for _, a := range addrs {
		most = max(most, reachOf(a))
	}
	return most
}

func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
