package guest

import (
	"context"
	"net/netip"
	"slices"

	"banger/api"
)

const (
	maxPorts   = 4096
	maxProcess = 64 // bytes of a process's name
)

// Stats asks the agent what the guest uses. The figures are the guest's word; they
// are made to be in order, not true.
func (c *Conn) Stats(ctx context.Context) (api.GuestStats, error) {
	var s api.GuestStats
	if err := c.ask(ctx, "ask agent for statistics", "/stats", &s); err != nil {
		return api.GuestStats{}, err
	}
	s.CPU = min(max(s.CPU, 0), 1)
	s.Uptime = max(s.Uptime, 0)
	s.CPUs, s.Processes = max(s.CPUs, 0), max(s.Processes, 0)
	s.NetReceived, s.NetSent = max(s.NetReceived, 0), max(s.NetSent, 0)
	for i := range s.Load {
		s.Load[i] = max(s.Load[i], 0)
	}
	for _, u := range []*api.Usage{&s.Memory, &s.Swap, &s.Root, s.Work} {
		if u != nil {
			u.Total = max(u.Total, 0)
			u.Used = min(max(u.Used, 0), u.Total)
		}
	}
	return s, nil
}

// Ports asks the agent at which sockets something listens. Names of processes are
// printable and short; what makes no sense is left out.
func (c *Conn) Ports(ctx context.Context) ([]api.Port, error) {
	ports := []api.Port{}
	if err := c.ask(ctx, "ask agent for ports", "/ports", &ports); err != nil {
		return nil, err
	}
	ports = slices.DeleteFunc(ports, func(p api.Port) bool {
		addr, err := netip.ParseAddr(p.Address)
		return err != nil || addr.Zone() != "" || p.Port == 0 || p.Protocol != "tcp" && p.Protocol != "udp"
	})
	ports = ports[:min(len(ports), maxPorts)]
	for i := range ports {
		ports[i].PID = max(ports[i].PID, 0)
		ports[i].Process = plain(ports[i].Process, maxProcess)
	}
	return ports, nil
}
