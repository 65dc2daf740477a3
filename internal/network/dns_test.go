package network

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"

	"github.com/miekg/dns"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// start serves on a port of the loopback interface, the same for UDP and TCP.
func start(t *testing.T, s *dnsServer) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.serve(packets, listener)
	t.Cleanup(s.close)
	return listener.Addr().String()
}

// resolver is a server out there: it knows TXT records of as many bytes as the name says.
func resolver(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		for range 20 {
			header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header, Txt: []string{strings.Repeat("x", 100)}})
		}
		if w.RemoteAddr().Network() == "udp" {
			m.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(m) // who asked may be gone
	})
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }() // until it is shut down
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return listener.Addr().String()
}

func ask(t *testing.T, network, server, name string, kind uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	client := &dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := client.Exchange(q, server)
	if err != nil {
		t.Fatalf("%s by %s: %v", name, network, err)
	}
	return m
}

func TestAnswers(t *testing.T) {
	v := view{names: map[string]netip.Addr{"api": netip.MustParseAddr("10.61.0.2")}}
	known := true
	s := newDNS(func(netip.Addr) (view, bool) { return v, known }, newUpstream(nil))
	up := resolver(t)
	s.upstream.fixed = []string{"127.0.0.1:1", up} // nobody answers at the first one
	server := start(t, s)
	for _, test := range []struct {
		name    string
		kind    uint16
		forward bool
		rcode   int
		answers int
	}{
		{"api.vm.", dns.TypeA, false, dns.RcodeSuccess, 1},
		{"API.Vm.", dns.TypeA, false, dns.RcodeSuccess, 1},
		{"api.vm.", dns.TypeAAAA, false, dns.RcodeSuccess, 0},
		{"vm.", dns.TypeA, false, dns.RcodeSuccess, 0},
		{"web.vm.", dns.TypeA, true, dns.RcodeNameError, 0},
		{"x.api.vm.", dns.TypeA, true, dns.RcodeNameError, 0},
		{"example.test.", dns.TypeTXT, false, dns.RcodeRefused, 0},
		{"example.test.", dns.TypeTXT, true, dns.RcodeSuccess, 20},
	} {
		v.forward = test.forward
		m := ask(t, "tcp", server, test.name, test.kind)
		if m.Rcode != test.rcode || len(m.Answer) != test.answers {
			t.Errorf("%s %s, forward %v: %s with %d answers, want %s with %d", test.name, dns.TypeToString[test.kind], test.forward,
				dns.RcodeToString[m.Rcode], len(m.Answer), dns.RcodeToString[test.rcode], test.answers)
		}
	}
	if m := ask(t, "udp", server, "example.test.", dns.TypeTXT); !m.Truncated || packed(t, m) > dns.MinMsgSize {
		t.Errorf("by UDP: truncated %v, %d bytes", m.Truncated, packed(t, m))
	}
	known = false
	if m := ask(t, "udp", server, "api.vm.", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("a stranger is told %s", dns.RcodeToString[m.Rcode])
	}
}

func packed(t *testing.T, m *dns.Msg) int {
	t.Helper()
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// What one guest asks does not keep others from asking.
func TestBounds(t *testing.T) {
	s := newDNS(nil, nil)
	for range maxPerGuest {
		if !s.begin(loopback) {
			t.Fatal("refused below the bound")
		}
	}
	if s.begin(loopback) {
		t.Error("one guest has more queries under way than it may")
	}
	other := netip.MustParseAddr("10.61.0.3")
	if !s.begin(other) {
		t.Error("another guest is kept from asking")
	}
	s.finish(loopback)
	if !s.begin(loopback) {
		t.Error("a query that ended still counts")
	}
}

// Connections of one address beyond the bound are closed, and count no more once
// they are closed.
func TestFewConnections(t *testing.T) {
	v := view{names: map[string]netip.Addr{"api": loopback}}
	server := start(t, newDNS(func(netip.Addr) (view, bool) { return v, true }, newUpstream(nil)))
	works := func(c net.Conn) bool {
		q := new(dns.Msg)
		q.SetQuestion("api.vm.", dns.TypeA)
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		conn := &dns.Conn{Conn: c}
		if conn.WriteMsg(q) != nil {
			return false
		}
		_, err := conn.ReadMsg()
		return err == nil
	}
	var open []net.Conn
	for i := range maxConns + 1 {
		c, err := net.Dial("tcp4", server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, want := works(c), i < maxConns; got != want {
			t.Errorf("connection %d: answered %v, want %v", i, got, want)
		}
		open = append(open, c)
	}
	_ = open[0].Close()
	for range 100 { // the server is to see the end first
		c, err := net.Dial("tcp4", server)
		if err != nil {
			t.Fatal(err)
		}
		ok := works(c)
		_ = c.Close()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a connection that was closed still counts")
}

// TestDiagnoseNames has resolvers that answer, that know nothing, and that are not there.
func TestDiagnoseNames(t *testing.T) {
	lost := func() string { // systemd-resolved without an upstream
		s := newDNS(func(netip.Addr) (view, bool) { return view{forward: true}, true }, &upstream{bad: map[string]time.Time{}})
		return start(t, s)
	}
	for what, c := range map[string]struct {
		fixed    []string
		severity api.Severity
		says     string
	}{
		"one that answers":       {[]string{resolver(t)}, api.SeverityOK, "is known"},
		"the second one answers": {[]string{"127.0.0.1:1", resolver(t)}, api.SeverityOK, "is known"},
		"one that has nobody":    {[]string{lost()}, api.SeverityWarning, "answer with SERVFAIL"},
		"one that is not there":  {[]string{"127.0.0.1:1"}, api.SeverityWarning, "do not answer"},
		"none":                   {nil, api.SeverityWarning, "no resolver is known"},
	} {
		found := diagnoseNames(t.Context(), &upstream{fixed: c.fixed, bad: map[string]time.Time{}})
		if len(found) != 1 || found[0].Severity != c.severity || !strings.Contains(found[0].Message, c.says) {
			t.Errorf("%s: %+v", what, found)
		}
		if c.severity != api.SeverityOK && (found[0].Advice == "" || found[0].Meaning == "") {
			t.Errorf("%s: it does not say what to do: %+v", what, found)
		}
	}
}

func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	conf, behind := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "stub.conf")
	u := newUpstream(nil)
	u.files = []string{conf, behind}
	age := time.Now().Add(-time.Hour)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		age = age.Add(time.Second)
		if err := os.Chtimes(name, age, age); err != nil {
			t.Fatal(err)
		}
		u.checked = time.Time{}
	}
	want := func(servers ...string) {
		t.Helper()
		if got := u.list(); !slices.Equal(got, servers) {
			t.Errorf("resolvers %v, want %v", got, servers)
		}
	}
	want()
	write(behind, "nameserver 192.0.2.7\n")
	write(conf, "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch test\n")
	want("192.0.2.1:53", "[2001:db8::1]:53")
	write(conf, "nameserver 127.0.0.53\noptions edns0\n")
	want("127.0.0.53:53", "192.0.2.7:53")
	u.judge("127.0.0.53:53", os.ErrDeadlineExceeded)
	want("192.0.2.7:53", "127.0.0.53:53")
	u.judge("127.0.0.53:53", nil)
	want("127.0.0.53:53", "192.0.2.7:53")
}
