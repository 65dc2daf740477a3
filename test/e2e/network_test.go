package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"banger/api"
	"banger/internal/hosttest"
)

// tryAll is a program for a guest: it connects to all of its arguments, HOST:PORT,
// at once, and prints for each what the other side says, or why there is none.
// Where SOURCE is set, that is the address it calls from.
const tryAll = `use IO::Socket::INET; $| = 1;
for my $to (@ARGV) {
	next if fork;
	my $s = IO::Socket::INET->new(PeerAddr => $to, Timeout => 2, $ENV{SOURCE} ? (LocalAddr => $ENV{SOURCE}) : ());
	my $said = "no";
	if ($s) { $s->shutdown(1); $said = "yes " . join("", <$s>) }
	print "$to $said\n";
	exit;
}
1 while wait != -1;`

// network is an installation with two VMs on its network, a and b.
type network struct {
	*hosttest.Host
	a, b     api.VM
	gateway  string
	resolver string
}

// answer is what a public server, or one of the host, says to who gets through.
const answer = "hello"

// TestNetwork runs what two machines on one network can show.
func TestNetwork(t *testing.T) {
	h := hosttest.NewSeeded(t)
	configure(t, h, "")
	hosttest.ServeOnInternet(t, hosttest.PublicAddress+":80", answer)
	hosttest.ServeOnInternet(t, hosttest.PrivateAddress+":80", answer)
	hosttest.Serve(t, "0.0.0.0:8080", answer)
	serveNames(t)

	n := &network{Host: h}
	h.Must(t, "vm", "run", "--name", "a", "--memory", "192M", "--", "true")
	h.Must(t, "vm", "run", "--name", "b", "--memory", "192M", "--", "sh", "-c", listener+" >/dev/null 2>&1 & until bash -c 'cat </dev/tcp/127.0.0.1/7000' >/dev/null 2>&1; do sleep 0.1; done")
	n.a, n.b = show(t, h, "a"), show(t, h, "b")
	n.gateway = h.Must(t, "vm", "exec", "a", "--", "sh", "-c", "ip route show default | cut -d' ' -f3")
	n.resolver = h.Must(t, "vm", "exec", "a", "--", "sed", "-n", "s/^nameserver //p", "/etc/resolv.conf")

	t.Run("ways", n.ways)
	t.Run("names", n.names)
	t.Run("forged", n.forged)
	t.Run("nat", n.nat)
	t.Run("daemon killed", n.daemonKilled)

	h.Must(t, "vm", "delete", "--force", "a", "b")
	nothingLeft(t, h)
}

// listener is a server in a guest that says answer on port 7000.
const listener = `perl -MIO::Socket::INET -e '$l = IO::Socket::INET->new(LocalPort => 7000, Listen => 5, ReuseAddr => 1) or die;
while ($c = $l->accept) { print $c "` + answer + `"; close $c }'`

func configure(t *testing.T, h *hosttest.Host, allow string) {
	t.Helper()
	text := fmt.Sprintf("[network]\nresolvers = [%q]\nallow = [%s]\n", hosttest.PublicAddress, allow)
	if err := os.WriteFile(h.Paths.Config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func show(t *testing.T, h *hosttest.Host, name string) api.VM {
	t.Helper()
	var v api.VM
	if err := json.Unmarshal([]byte(h.Must(t, "vm", "show", name, "--json")), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// try has a guest call all that are named in want, and compares.
func (n *network) try(t *testing.T, vm, source string, want map[string]bool) {
	t.Helper()
	args := []string{"vm", "exec", vm, "--", "env", "SOURCE=" + source, "perl", "-e", tryAll}
	for to := range want {
		args = append(args, to)
	}
	lines := strings.Split(n.Must(t, args...), "\n")
	for to, through := range want {
		line := to + " no"
		if through {
			line = to + " yes " + answer
		}
		if !slices.Contains(lines, line) {
			t.Errorf("%s calls %s from %q: want %q in\n%s", vm, to, source, line, strings.Join(lines, "\n"))
		}
	}
}

// ways are the directions in which packets pass, and those in which they don't.
func (n *network) ways(t *testing.T) {
	n.Must(t, "vm", "exec", "a", "--", "ip", "route", "add", n.b.IP+"/32", "via", n.gateway, "dev", "eth0", "onlink")
	n.try(t, "a", "", map[string]bool{
		hosttest.PublicAddress + ":80":   true,
		hosttest.PrivateAddress + ":80":  false,
		hosttest.HostAddress + ":8080":   false,
		n.gateway + ":8080":              false,
		n.resolver + ":8080":             false,
		n.b.IP + ":7000":                 false, // routed
		hosttest.GatewayAddress + ":123": false,
	})
	n.Must(t, "vm", "exec", "a", "--", "ip", "route", "del", n.b.IP+"/32")
	n.try(t, "a", "", map[string]bool{n.b.IP + ":7000": false}) // bridged
	// The host may call guests, and b does answer.
	conn, err := net.DialTimeout("tcp", n.b.IP+":7000", time.Minute)
	if err != nil {
		t.Fatalf("the host calls b: %v", err)
	}
	defer conn.Close()
	if said, err := bufio.NewReader(conn).ReadString(0); said != answer {
		t.Errorf("the host calls b: %q, %v", said, err)
	}
	// The others don't: here, what is beyond the host by way of it.
	hosttest.OnInternet(t, func() error {
		if err := hosttest.RouteByHost(n.b.IP); err != nil {
			return err
		}
		if conn, err := net.DialTimeout("tcp", n.b.IP+":7000", time.Second); err == nil {
			t.Error("b is called from beyond the host")
			return conn.Close()
		}
		return nil
	})
}

// serveNames has a resolver out there know example.test, by UDP and by TCP.
func serveNames(t *testing.T) {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Name == "example.test." && q.Question[0].Qtype == dns.TypeA {
			header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: net.ParseIP(hosttest.PublicAddress)})
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m) // who asked may be gone
	})
	server := &dns.Server{Handler: handler}
	hosttest.OnInternet(t, func() (err error) {
		server.PacketConn, err = net.ListenPacket("udp4", hosttest.PublicAddress+":53")
		return err
	})
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { _ = server.ActivateAndServe() }() // until it is shut down
	<-started
	t.Cleanup(func() { _ = server.Shutdown() })
}

// names looks names up in a guest and on the host.
func (n *network) names(t *testing.T) {
	for name, want := range map[string]string{"example.test": hosttest.PublicAddress, "a.vm": n.a.IP, "b.vm": "", "nothing.test": ""} {
		got, _, _ := strings.Cut(n.Banger(t, "vm", "exec", "a", "--", "getent", "ahostsv4", name).Stdout, " ")
		if got != want {
			t.Errorf("a finds %s at %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"a.vm.": n.a.IP, "b.vm.": n.b.IP, "c.vm.": ""} {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		m, err := dns.ExchangeContext(t.Context(), q, n.resolver+":53")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok {
				got = a.A.String()
			}
		}
		if got != want || !m.Authoritative {
			t.Errorf("the host finds %s at %q, authoritative %v, want %q", name, got, m.Authoritative, want)
		}
	}
}

// forged lets root in a guest call from addresses that are not its own.
func (n *network) forged(t *testing.T) {
	public := hosttest.PublicAddress + ":80"
	ip := func(args ...string) {
		t.Helper()
		n.Must(t, append([]string{"vm", "exec", "a", "--", "ip"}, args...)...)
	}
	octets := strings.Split(n.a.IP, ".")
	forged := strings.Join(octets[:3], ".") + ".77"
	ip("addr", "add", forged+"/32", "dev", "eth0")
	n.try(t, "a", forged, map[string]bool{public: false})
	ip("addr", "add", n.b.IP+"/32", "dev", "eth0")
	n.try(t, "a", n.b.IP, map[string]bool{public: false})
	ip("addr", "del", n.b.IP+"/32", "dev", "eth0")
	ip("addr", "del", forged+"/32", "dev", "eth0")

	ip("link", "set", "eth0", "address", n.b.MAC)
	n.try(t, "a", "", map[string]bool{public: false})
	ip("link", "set", "eth0", "address", n.a.MAC)
	n.try(t, "a", "", map[string]bool{public: true})

	// IPv6 is not for guests yet: not even the link's own addresses answer.
	if r := n.Banger(t, "vm", "exec", "a", "--", "sh", "-c", "ip -6 neigh show dev eth0 | grep -v FAILED | grep lladdr"); r.Stdout != "" {
		t.Errorf("a has neighbours by IPv6: %s", r.Stdout)
	}
}

// nat switches NAT off and on while the VM runs.
func (n *network) nat(t *testing.T) {
	public := hosttest.PublicAddress + ":80"
	n.Must(t, "vm", "set", "a", "--nat", "off")
	n.try(t, "a", "", map[string]bool{public: false})
	n.try(t, "b", "", map[string]bool{public: true})
	if r := n.Banger(t, "vm", "exec", "a", "--", "getent", "hosts", "example.test"); r.Exit == 0 {
		t.Errorf("a VM without NAT finds names of the Internet: %s", r.Stdout)
	}
	n.Must(t, "vm", "exec", "a", "--", "getent", "hosts", "a.vm")
	n.Must(t, "vm", "set", "a", "--nat", "on")
	n.try(t, "a", "", map[string]bool{public: true})
}

// echo is a program for a guest that calls a server and gives back what it is sent.
const echo = `perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new("` + hosttest.PublicAddress + `:90") or die; $s->autoflush(1);
while (<$s>) { print $s $_ }'`

// daemonKilled kills the daemon while a guest has a connection, and lets the next
// one start with another configuration.
func (n *network) daemonKilled(t *testing.T) {
	var l net.Listener
	hosttest.OnInternet(t, func() (err error) {
		l, err = net.Listen("tcp4", hosttest.PublicAddress+":90")
		return err
	})
	defer l.Close()
	n.Must(t, "vm", "exec", "a", "--", "sh", "-c", echo+" >/dev/null 2>&1 &")
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	ping := func(when string) {
		t.Helper()
		_, err := fmt.Fprintln(conn, when)
		if err == nil {
			err = conn.SetReadDeadline(time.Now().Add(time.Minute))
		}
		if back, rerr := lines.ReadString('\n'); err != nil || rerr != nil || strings.TrimSpace(back) != when {
			t.Errorf("%s: the connection gives %q back (%v, %v)", when, back, err, rerr)
		}
	}
	ping("before")
	n.KillDaemon(t)
	ping("without a daemon")
	configure(t, n.Host, `"172.20.0.0/16"`)
	n.Must(t, "vm", "exec", "a", "--", "true")
	ping("with the next daemon")
	n.try(t, "a", "", map[string]bool{
		hosttest.PublicAddress + ":80":  true,
		hosttest.PrivateAddress + ":80": true, // it is allowed now
		hosttest.HostAddress + ":8080":  false,
		n.b.IP + ":7000":                false,
	})
	n.Must(t, "vm", "exec", "a", "--", "getent", "hosts", "example.test")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion("b.vm.", dns.TypeA)
	if _, err := dns.ExchangeContext(ctx, q, n.resolver+":53"); err != nil {
		t.Errorf("ask the resolver of the next daemon: %v", err)
	}
}

// A VM without network has the loopback link only.
func TestNoNetwork(t *testing.T) {
	h := hosttest.NewSeeded(t)
	got := h.Must(t, "vm", "run", "--rm", "--net", "none", "--", "sh", "-c", "ls /sys/class/net; cat /proc/net/route | wc -l")
	if got != "lo\n1" {
		t.Errorf("a VM without network has %q", got)
	}
	if r := h.Banger(t, "vm", "create", "--net", "none", "--nat", "on"); r.Exit != exitInvalid || !strings.Contains(r.Stderr, "--net") {
		t.Errorf("NAT without a network: exit status %d, want %d and a hint\n%s", r.Exit, exitInvalid, r.Stderr)
	}
	nothingLeft(t, h)
}
