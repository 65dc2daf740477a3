package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Where the host says who resolves its names: resolv.conf(5), and behind the stub of
// systemd-resolved(8), which knows which resolver is for which name, its upstreams.
const (
	resolvConf    = "/etc/resolv.conf"
	resolvedConf  = "/run/systemd/resolve/resolv.conf"
	resolvedStub  = "127.0.0.53"
	askTimeout    = 2 * time.Second // of one resolver, before the next one is asked
	checkInterval = time.Second     // between looks at the files
)

// upstream is the resolvers to which queries are forwarded.
type upstream struct {
	fixed []string
	files []string // resolvConf and resolvedConf

	mu      sync.Mutex
	checked time.Time
	stamps  []time.Time
	servers []string
	bad     map[string]time.Time // when one did not answer
}

// newUpstream returns the resolvers given, or those of the host, as they change.
func newUpstream(fixed []netip.Addr) *upstream {
	u := &upstream{files: []string{resolvConf, resolvedConf}, bad: map[string]time.Time{}}
	for _, addr := range fixed {
		u.fixed = append(u.fixed, net.JoinHostPort(addr.String(), "53"))
	}
	return u
}

// ask sends a query to one resolver after the other until one answers.
func (u *upstream) ask(ctx context.Context, q *dns.Msg, network string) (*dns.Msg, error) {
	errs := []error{errors.New("no resolver is known")}
	for _, server := range u.list() {
		answer, err := exchange(ctx, server, q, network)
		u.judge(server, err)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// exchange asks one resolver. The query gets an id and a port of its own, so that who
// asked does not know what a forged answer would need.
func exchange(ctx context.Context, server string, q *dns.Msg, network string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ours := q.Copy()
	ours.Id = dns.Id()
	client := &dns.Client{Net: network, UDPSize: maxUDP, Timeout: askTimeout}
	answer, _, err := client.ExchangeContext(ctx, ours, server)
	if err != nil {
		return nil, err
	}
	if len(answer.Question) != 1 || answer.Question[0] != ours.Question[0] {
		return nil, errors.New("the answer is to another question")
	}
	answer.Id = q.Id
	return answer, nil
}

// judge remembers who did not answer, to ask the others first for a while.
func (u *upstream) judge(server string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		u.bad[server] = time.Now()
	} else {
		delete(u.bad, server)
	}
}

// list returns the resolvers in the order in which to ask them.
func (u *upstream) list() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	servers := u.fixed
	if len(servers) == 0 {
		u.read()
		servers = u.servers
	}
	late := func(s string) bool { return time.Since(u.bad[s]) < 10*time.Second }
	ordered := slices.Clone(servers)
	slices.SortStableFunc(ordered, func(a, b string) int {
		switch {
		case late(a) == late(b):
			return 0
		case late(a):
			return 1
		}
		return -1
	})
	return ordered
}

// read reads the files again when they have changed.
func (u *upstream) read() {
	if time.Since(u.checked) < checkInterval {
		return
	}
	u.checked = time.Now()
	var stamps []time.Time
	for _, name := range u.files {
		var stamp time.Time
		if info, err := os.Stat(name); err == nil {
			stamp = info.ModTime()
		}
		stamps = append(stamps, stamp)
	}
	if slices.Equal(stamps, u.stamps) {
		return
	}
	u.stamps = stamps
	u.servers = nil
	stub := false
	for i, name := range u.files {
		if i > 0 && !stub {
			break
		}
		config, err := dns.ClientConfigFromFile(name)
		if err != nil {
			continue // a host without resolvers
		}
		for _, server := range config.Servers {
			stub = stub || server == resolvedStub
			u.servers = append(u.servers, net.JoinHostPort(server, config.Port))
		}
		clear(u.bad)
	}
}
