package vm

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/linux"
)

// statsPatience is how long a guest has to say what it uses.
const statsPatience = 3 * time.Second

// Stats says what a running VM uses. A guest that does not answer is no error: the
// host's figures are there all the same.
func (s *Service) Stats(ctx context.Context, caller uint32, ref string) (api.Stats, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return api.Stats{}, err
	}
	l, err := o.current()
	if err != nil {
		return api.Stats{}, err
	}
	out := api.Stats{VM: o.id, Name: o.name()}
	if out.Host, err = s.hostStats(o.id, l.inst.PID()); err != nil {
		if _, gone := o.current(); gone != nil {
			return api.Stats{}, gone
		}
		return api.Stats{}, api.Errorf(api.CodeInternal, "statistics of VM %q: %w", out.Name, err)
	}
	guest, err := guestStats(ctx, l)
	if err != nil {
		out.GuestError = api.AsError(err).Message
		return out, nil
	}
	out.Guest = &guest
	return out, nil
}

func guestStats(ctx context.Context, l *live) (api.GuestStats, error) {
	ctx, cancel := context.WithTimeout(ctx, statsPatience)
	defer cancel()
	conn, err := l.channel(ctx)
	if err != nil {
		return api.GuestStats{}, err
	}
	return conn.Stats(ctx)
}

func (s *Service) hostStats(id string, pid int) (api.HostStats, error) {
	cpu, memory, err := linux.ProcessUsage(pid)
	if err != nil {
		return api.HostStats{}, err
	}
	out := api.HostStats{CPU: cpu.Seconds(), Memory: memory}
	err = filepath.WalkDir(s.vmDir(id), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var n int64
			n, err = linux.Allocated(path)
			out.Disk += n
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		return err
	})
	return out, err
}

// Ports lists the sockets of a running VM at which something listens.
func (s *Service) Ports(ctx context.Context, caller uint32, ref string) ([]api.Port, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return nil, err
	}
	conn, err := s.channel(ctx, caller, ref)
	if err != nil {
		return nil, err
	}
	ports, err := conn.Ports(ctx)
	return withExposed(ports, s.view(ctx, o).Ports), err
}
