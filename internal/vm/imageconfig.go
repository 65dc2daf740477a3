package vm

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/wire"
)

const (
	// maxConfigs bounds how many images' configurations are remembered.
	maxConfigs = 256
	// healthPause is the least time between two questions after a guest's health.
	healthPause = time.Second
	// maxRange bounds how many ports of one exposed range are shown.
	maxRange = 100
)

// configs remembers what images say of how they are to be run. An id is a digest, so
// that what it says does not change.
type configs struct {
	mu   sync.Mutex
	byID map[string]api.ImageConfig
}

// runConfig is how the VM's image is to be run. That it is not known is no reason to
// keep anybody from a VM.
func (s *Service) runConfig(ctx context.Context, rec Record) api.ImageConfig {
	s.configs.mu.Lock()
	c, known := s.configs.byID[rec.ImageID]
	s.configs.mu.Unlock()
	if known {
		return c
	}
	c, err := s.assets.RunConfig(ctx, rec.ImageID)
	if err != nil {
		s.log.Warn("read how an image is to be run", "vm", rec.Name, "image", rec.ImageID, "err", err)
		return api.ImageConfig{}
	}
	s.configs.mu.Lock()
	defer s.configs.mu.Unlock()
	if s.configs.byID == nil || len(s.configs.byID) >= maxConfigs {
		s.configs.byID = map[string]api.ImageConfig{}
	}
	s.configs.byID[rec.ImageID] = c
	return c
}

// imageConfig tells the agent what the image says of how it is to be run.
type imageConfig struct {
	inert
	svc *Service
}

func (i imageConfig) configure(ctx context.Context, rec Record, c *wire.Configure) error {
	if !rec.reader() { // in which nothing of the image's is to run
		told := i.svc.runConfig(ctx, rec)
		c.Image = &told
	}
	return nil
}

// view is the VM as the API shows it, with what its image says.
func (s *Service) view(ctx context.Context, o *owner) api.VM {
	v := o.view()
	c := s.runConfig(ctx, Record{Name: v.Name, ImageID: v.ImageID})
	v.Command, v.Ports = c.Command(), c.ExposedPorts
	return v
}

// watchHealth follows what the health check of the image finds, for as long as the
// connection lasts. A guest without one says so once.
func (l *live) watchHealth(ctx context.Context, conn *guest.Conn) {
	var seen int64
	for {
		pause := healthPause
		health, seq, err := conn.ImageHealth(ctx, seen)
		switch {
		case err != nil: // also an agent of an earlier version
			pause = 10 * healthPause
		case health == nil:
			return
		default:
			seen = seq
			l.mu.Lock()
			l.health = health
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-conn.Done():
			return
		case <-l.inst.Exited():
			return
		case <-time.After(pause):
		}
	}
}

func (l *live) healthNow() *api.Health {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.health
}

// withExposed marks the ports that an image exposes, and adds those at which nothing
// listens.
func withExposed(ports []api.Port, exposed []string) []api.Port {
	for _, e := range exposed {
		numbers, protocol, _ := strings.Cut(e, "/")
		from, to, ranged := strings.Cut(numbers, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && ranged {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil {
			continue
		}
		for n := first; n <= last && n-first < maxRange; n++ {
			found := false
			for i := range ports {
				if uint64(ports[i].Port) == n && ports[i].Protocol == protocol {
					ports[i].Exposed, found = true, true
				}
			}
			if !found && protocol != "sctp" {
				ports = append(ports, api.Port{Protocol: protocol, Port: uint16(n), Exposed: true})
			}
		}
	}
	slices.SortStableFunc(ports, func(a, b api.Port) int { return int(a.Port) - int(b.Port) })
	return ports
}
