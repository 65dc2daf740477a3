package registry

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

func TestMain(m *testing.M) {
	if ref := os.Getenv(proxiedRef); ref != "" {
		fetchProxied(ref)
		return
	}
	hosttest.Main(m)
}

// elsewhere is a server on an address of the tests' Internet, or of this host.
func elsewhere(t *testing.T, address string, h http.Handler) (host string) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(address, "0"))
		return err
	}
	if addr := netip.MustParseAddr(address); addr.IsLoopback() {
		if err := listen(); err != nil {
			t.Fatal(err)
		}
	} else {
		hosttest.OnInternet(t, listen)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().String()
}

// TestRegistriesLeadNowhereNearer has registries on the Internet, in a private network
// and on this host lead to each other with what they have of an image, and with where
// tokens are to be had: only as near as they are themselves.
func TestRegistriesLeadNowhereNearer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("makes a network of its own, which needs root")
	}
	const loopback, metadata = "127.0.0.1", "169.254.169.254"
	addLink(t, metadata)
	config := `{"os":"linux"}`
	var asked atomic.Int64
	target := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = io.WriteString(w, config)
	})
	places := []string{hosttest.PublicAddress, hosttest.PrivateAddress, metadata, loopback}
	for i, from := range places {
		for k, to := range places {
			there := elsewhere(t, to, target)
			for what, h := range map[string]http.HandlerFunc{
				"a blob": func(w http.ResponseWriter, r *http.Request) {
					switch {
					case strings.Contains(r.URL.Path, "/manifests/"):
						fmt.Fprintf(w, `{"schemaVersion":2,"config":{"digest":%q,"size":1}}`, digestOf([]byte(config)))
					case strings.Contains(r.URL.Path, "/blobs/"):
						http.Redirect(w, r, "http://"+there+"/blob", http.StatusTemporaryRedirect)
					}
				},
				"tokens": func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+there+`/token",service="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				},
			} {
				t.Run(from+" leads with "+what+" to "+to, func(t *testing.T) {
					asked.Store(0)
					host := elsewhere(t, from, h)
					c := Client{Config{Insecure: []string{host}}}
					_, err := c.Fetch(t.Context(), host+"/x:1", "", authn.AuthConfig{})
					may := k <= i && to != metadata && what == "a blob" // the library has tokens from public addresses only
					if may != (err == nil) || may != (asked.Load() > 0) && !(what == "tokens" && k == 0) {
						t.Errorf("%v, asked %d times", err, asked.Load())
					}
					if err != nil && (!strings.Contains(err.Error(), host) || strings.Contains(err.Error(), "\n")) {
						t.Errorf("it does not name the registry: %v", err)
					}
					if what == "a blob" && !may && api.CodeOf(err) != api.CodePermissionDenied {
						t.Errorf("got %v", err)
					}
				})
			}
		}
	}
}

// addLink gives the tests' Internet one more address.
func addLink(t *testing.T, address string) {
	t.Helper()
	hosttest.OnInternet(t, func() error {
		err := linux.AddLink(linux.LinkDummy, "other", nil)
		if err == nil {
			err = linux.SetAddress("other", netip.MustParsePrefix(address+"/32"))
		}
		if err == nil {
			err = linux.SetLinkUp("other")
		}
		return err
	})
	t.Cleanup(func() { hosttest.OnInternet(t, func() error { return linux.DeleteLink("other") }) })
}

// TestWithoutTLS is for registries that are not on this host.
func TestWithoutTLS(t *testing.T) {
	g := newGuard("203.0.113.7:5000", false, Patience{})
	req, err := http.NewRequest(http.MethodGet, "http://203.0.113.7:5000/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.RoundTrip(req); api.CodeOf(err) != api.CodePermissionDenied || !strings.Contains(api.AsError(err).Hint, "image.insecure") {
		t.Errorf("without TLS: %v", err)
	}
}

// TestFarthestCounts has a name with addresses on the Internet and on this host.
func TestFarthestCounts(t *testing.T) {
	g := newGuard("registry.example:5000", false, Patience{})
	if g.reach() != public {
		t.Error("an unknown registry is near")
	}
	for _, c := range []struct {
		at   string
		want reach
	}{{"127.0.0.1:5000", own}, {"203.0.113.7:5000", public}, {"127.0.0.1:5000", public}} {
		g.meet(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.at)))
		if got := g.reach(); got != c.want {
			t.Errorf("found at %s: %v, want %v", c.at, got, c.want)
		}
	}
}

func TestReach(t *testing.T) {
	for addr, want := range map[string]reach{
		"127.0.0.1": own, "::1": own, "0.0.0.0": own, "::ffff:127.0.0.1": own, "10.1.2.3": private, "192.168.0.1": private, "fe80::1": link,
		"fd00::1": private, "169.254.169.254": link, "::ffff:169.254.169.254": link, "224.0.0.1": private, "203.0.113.7": public, "2001:db8::1": public,
		"100.100.100.200": private, "255.255.255.255": private, "64:ff9b::7f00:1": own, "2002:a9fe:a9fe::1": link, "64:ff9b::cb00:7107": public,
	} {
		if got := reachOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}
