package network

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	dnsPort = 53
	dnsZone = "vm." // where the names of VMs are

	dnsTTL       = 5 // seconds that an answer of ours may be kept
	maxQueries   = 512
	maxPerGuest  = 64               // queries under way
	maxConns     = 16               // TCP connections of one guest
	dnsIdle      = 10 * time.Second // of a TCP connection
	maxPerConn   = 128              // queries on one
	queryTimeout = 8 * time.Second  // for all resolvers together
	maxUDP       = 4096             // bytes of an answer
)

// dnsServer answers guests and the host. Of what is below vm it is the authority; a
// guest sees only itself there. Anything else is forwarded for guests with NAT.
type dnsServer struct {
	udp, tcp *dns.Server
	look     func(from netip.Addr) (view, bool)
	upstream *upstream
	all      chan struct{}
	stop     context.CancelFunc
	ctx      context.Context
	done     sync.WaitGroup

	mu   sync.Mutex
	busy map[netip.Addr]int
}

// view is what somebody who asks may see.
type view struct {
	names   map[string]netip.Addr // without the zone
	forward bool
}

// startDNS starts the resolver if it does not run. A port that is taken (by a server
// that listens on all addresses) is tried again later; VMs then have no names.
func (n *Network) startDNS() {
	if n.dns != nil {
		return
	}
	address := netip.AddrPortFrom(resolverOf(n.base.subnet), dnsPort).String()
	packets, err := net.ListenPacket("udp4", address)
	if err != nil {
		n.Log.Error("start the guests' resolver; it is tried again", "err", err)
		return
	}
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		n.Log.Error("start the guests' resolver; it is tried again", "err", err)
		packets.Close()
		return
	}
	s := newDNS(n.look, newUpstream(n.Resolvers))
	s.serve(packets, listener)
	n.dns = s
}

func (n *Network) stopDNS() {
	if n.dns != nil {
		n.dns.close()
		n.dns = nil
	}
}

// directory is who may see what. It does not change once it is published, so that a
// query waits for nothing.
type directory struct {
	subnet netip.Prefix
	all    map[string]netip.Addr
	guests map[netip.Addr]view
}

// publish lets the resolver know of the attachments as they are. Callers hold mu.
func (n *Network) publish() {
	if n.base == nil {
		n.directory.Store(nil)
		return
	}
	d := &directory{subnet: n.base.subnet, all: map[string]netip.Addr{}, guests: map[netip.Addr]view{}}
	for _, g := range n.guests {
		d.all[g.Name] = g.IP
		d.guests[g.IP] = view{names: map[string]netip.Addr{g.Name: g.IP}, forward: g.NAT}
	}
	n.directory.Store(d)
}

// look says what an address may see: a guest itself, the host all VMs.
func (n *Network) look(from netip.Addr) (view, bool) {
	d := n.directory.Load()
	if d == nil {
		return view{}, false
	}
	if v, attached := d.guests[from]; attached {
		return v, true
	}
	// The rules let nobody else but the host itself get here.
	host := from == resolverOf(d.subnet) || from == gatewayOf(d.subnet) || !d.subnet.Contains(from)
	return view{names: d.all}, host
}

func newDNS(look func(netip.Addr) (view, bool), up *upstream) *dnsServer {
	ctx, stop := context.WithCancel(context.Background())
	return &dnsServer{look: look, upstream: up, all: make(chan struct{}, maxQueries), ctx: ctx, stop: stop, busy: map[netip.Addr]int{}}
}

// serve answers on a UDP and a TCP socket until close.
func (s *dnsServer) serve(packets net.PacketConn, listener net.Listener) {
	s.udp = &dns.Server{PacketConn: packets, Handler: s, UDPSize: maxUDP}
	s.tcp = &dns.Server{
		Listener: &fewConns{Listener: listener, of: map[netip.Addr]int{}}, Handler: s, ReadTimeout: dnsIdle, WriteTimeout: dnsIdle,
		IdleTimeout: func() time.Duration { return dnsIdle }, MaxTCPQueries: maxPerConn,
	}
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		var started sync.WaitGroup
		started.Add(1)
		server.NotifyStartedFunc = started.Done
		s.done.Go(func() { _ = server.ActivateAndServe() }) // ends with its socket
		started.Wait()
	}
}

func (s *dnsServer) close() {
	s.stop()
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		_ = server.Shutdown() // it was running
	}
	s.done.Wait()
}

// ServeDNS implements dns.Handler.
func (s *dnsServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	from := addrOf(w.RemoteAddr())
	answer := &dns.Msg{}
	answer.SetReply(q)
	v, known := s.look(from)
	switch {
	case !known:
		answer.Rcode = dns.RcodeRefused
	case q.Opcode != dns.OpcodeQuery:
		answer.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		answer.Rcode = dns.RcodeFormatError
	case dns.IsSubDomain(dnsZone, strings.ToLower(q.Question[0].Name)):
		v.answer(answer, q.Question[0])
	case !v.forward:
		answer.Rcode = dns.RcodeRefused
	default:
		answer = s.forward(from, q, w.RemoteAddr().Network())
	}
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), size), maxUDP)
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer) // who asked may be gone
}

// answer fills in what is known of a name below vm.
func (v view) answer(m *dns.Msg, q dns.Question) {
	m.Authoritative = true
	name := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(q.Name), dnsZone), ".")
	ip, found := v.names[name]
	header := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: dnsTTL}
	if found && q.Qclass == dns.ClassINET && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY) {
		m.Answer = append(m.Answer, &dns.A{Hdr: header, A: ip.AsSlice()})
		return
	}
	if !found && name != "" {
		m.Rcode = dns.RcodeNameError
	}
	m.Ns = append(m.Ns, &dns.SOA{
		Hdr: dns.RR_Header{Name: dnsZone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: dnsTTL},
		Ns:  "ns." + dnsZone, Mbox: "root." + dnsZone, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: dnsTTL,
	})
}

// forward asks the resolvers, unless too much is being asked already.
func (s *dnsServer) forward(from netip.Addr, q *dns.Msg, network string) *dns.Msg {
	failure := &dns.Msg{}
	failure.SetRcode(q, dns.RcodeServerFailure)
	if !s.begin(from) {
		return failure
	}
	defer s.finish(from)
	ctx, cancel := context.WithTimeout(s.ctx, queryTimeout)
	defer cancel()
	answer, err := s.upstream.ask(ctx, q, network)
	if err != nil {
		return failure
	}
	return answer
}

func (s *dnsServer) begin(from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[from] >= maxPerGuest {
		return false
	}
	select {
	case s.all <- struct{}{}:
		s.busy[from]++
		return true
	default:
		return false
	}
}

func (s *dnsServer) finish(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	<-s.all
	if s.busy[from]--; s.busy[from] == 0 {
		delete(s.busy, from)
	}
}

func addrOf(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}

// fewConns closes connections beyond maxConns of one address at once.
type fewConns struct {
	net.Listener
	mu sync.Mutex
	of map[netip.Addr]int
}

func (l *fewConns) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addrOf(c.RemoteAddr())
		l.mu.Lock()
		few := l.of[from] < maxConns
		if few {
			l.of[from]++
		}
		l.mu.Unlock()
		if few {
			return &countedConn{Conn: c, close: sync.OnceFunc(func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				if l.of[from]--; l.of[from] == 0 {
					delete(l.of, from)
				}
			})}, nil
		}
		_ = c.Close() // it is not to be served
	}
}

type countedConn struct {
	net.Conn
	close func()
}

func (c *countedConn) Close() error {
	c.close()
	return c.Conn.Close()
}
