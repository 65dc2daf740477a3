package vm

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/vmm"
)

const (
	bootTimeout   = 90 * time.Second // from the VMM's start to the agent's answer
	channelPace   = time.Second      // least time between two channels: a guest may break each at once
	agentPatience = 10 * time.Second // how long a request waits for a channel that is being made anew
)

// live is what is momentarily true of a VM: its VMM and the channel to its agent,
// which is made anew whenever it breaks.
type live struct {
	inst    vmm.Instance
	engine  string
	spec    runSpec
	steps   []api.Step
	disks   []vmm.Disk // in the order of the machine
	cgroup  string     // its directory
	connect func(context.Context, vmm.Instance, Record) (*guest.Conn, error)
	log     *slog.Logger
	stop    context.CancelFunc
	ended   chan struct{} // closed when keep has returned
	telling sync.Mutex    // held while the VMM is told to stand still or to go on

	configuration func(context.Context, Record) (wire.Configure, error)
	checked       bool // its image has a health check

	mu     sync.Mutex
	rec    Record // as the guest is to know it
	conn   *guest.Conn
	ready  chan struct{} // closed while conn is usable
	health *api.Health   // nil where the image has no check, or has not been heard
	paused bool
	unsure bool          // whether the VMM does what paused says: it has not answered, or another daemon started it
	turned chan struct{} // closed and replaced whenever one of both changes
}

// connect makes the channel to the agent and configures the guest.
func (s *Service) connect(ctx context.Context, inst vmm.Instance, rec Record) (*guest.Conn, error) {
	conn, _, err := s.connectWithin(ctx, bootTimeout, inst, rec)
	return conn, err
}

// connectWithin is connect within a time of the caller's. The greeting is the answer to the
// configuration.
func (s *Service) connectWithin(ctx context.Context, timeout time.Duration, inst vmm.Instance, rec Record) (*guest.Conn, wire.Greeting, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	go func() { // a VMM that ended will not answer any more
		select {
		case <-inst.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := guest.Connect(ctx, guest.Kind(inst.Channel()), inst.Dial, rec.Sync)
	if err != nil {
		return nil, wire.Greeting{}, err
	}
	var greeting wire.Greeting
	what, err := s.configuration(ctx, rec)
	if err == nil {
		greeting, err = conn.Configure(ctx, what)
	}
	if err != nil {
		conn.Close()
		return nil, wire.Greeting{}, err
	}
	return conn, greeting, nil
}

// newLive takes a running VMM over. Where there is no channel it is made.
func (s *Service) newLive(b booted, rec Record) *live {
	ctx, cancel := context.WithCancel(context.Background())
	l := &live{
		rec: rec, inst: b.inst, engine: b.engine, spec: b.spec, steps: b.steps, disks: b.disks, cgroup: b.cgroup,
		connect: s.connect, log: s.log.With("vm", rec.Name), stop: cancel, ended: make(chan struct{}), ready: make(chan struct{}),
		configuration: s.configuration, checked: s.runConfig(ctx, rec).Healthcheck != nil, paused: b.paused, unsure: b.adopted, turned: make(chan struct{}),
	}
	if b.conn != nil {
		l.set(b.conn)
	}
	go l.keep(ctx)
	return l
}

// keep makes the channel anew whenever it breaks, until the VMM ends.
func (l *live) keep(ctx context.Context) {
	defer close(l.ended)
	var watch sync.WaitGroup
	defer watch.Wait()
	for {
		if conn := l.connection(); conn != nil {
			if l.checked {
				watch.Go(func() { l.watchHealth(ctx, conn) })
			}
			next := time.Now().Add(channelPace)
			lives := l.awaitBreak(ctx, conn)
			conn.Close()
			if !lives {
				return
			}
			l.unset()
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(next)):
			}
		}
		if !l.awaitTurn(ctx) {
			return
		}
		conn, err := l.connect(ctx, l.inst, l.record())
		if err == nil {
			l.set(conn)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.inst.Exited():
			return
		case <-time.After(time.Second):
			l.log.Info("the agent does not answer; it is tried again", "err", err)
		}
	}
}

// awaitBreak waits until the channel breaks. False: the VMM has ended, or ctx.
func (l *live) awaitBreak(ctx context.Context, conn *guest.Conn) bool {
	for {
		l.mu.Lock()
		turned := l.turned
		l.mu.Unlock()
		if !l.settleDoubt(ctx) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-l.inst.Exited():
			return false
		case <-conn.Done():
			return true
		case <-turned:
		}
	}
}

func (l *live) set(conn *guest.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	close(l.ready)
}

// record and setRecord are what the guest is told at each connection.
func (l *live) record() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec
}

func (l *live) setRecord(rec Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec = rec
}

func (l *live) unset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.ready = nil, make(chan struct{})
}

func (l *live) connection() *guest.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn
}

// agent returns the transport to the agent; see channel.
func (l *live) agent(ctx context.Context) (http.RoundTripper, error) {
	conn, err := l.channel(ctx)
	if err != nil {
		return nil, err
	}
	return conn.Transport(), nil
}

// channel returns the connection to the agent; it waits a while for one that is
// being made anew.
func (l *live) channel(ctx context.Context) (*guest.Conn, error) {
	l.mu.Lock()
	ready := l.ready
	l.mu.Unlock()
	select {
	case <-ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.inst.Exited():
		return nil, api.Errorf(api.CodeConflict, "reach the agent: the VM has ended")
	case <-time.After(agentPatience):
	}
	if conn := l.connection(); conn != nil {
		return conn, nil
	}
	return nil, api.Errorf(api.CodeGuest, "reach the agent: it does not answer").
		WithHint("banger vm logs shows the console; banger vm kill ends the VM")
}

// resize tells the machine and its guest that the disks at the paths have grown.
func (l *live) resize(ctx context.Context, paths []string) error {
	grown := map[string]int64{}
	for _, path := range paths {
		i := slices.IndexFunc(l.disks, func(d vmm.Disk) bool { return d.Path == path })
		if i < 0 {
			return fmt.Errorf("resize disk %s: the machine is not known to have it", path)
		}
		size, err := linux.DiskSize(path)
		if err != nil {
			return err
		}
		if err := l.inst.ResizeDisk(ctx, i, size); err != nil {
			return err
		}
		grown[diskName(i)] = size
	}
	if len(paths) == 0 {
		return nil
	}
	conn, err := l.channel(ctx)
	if err != nil {
		return fmt.Errorf("let file systems grow: %w", err)
	}
	_, err = conn.Configure(ctx, wire.Configure{Grow: true, Grown: grown})
	return err
}

// close lets go of the VMM, which runs on if it has not ended.
func (l *live) close() {
	l.stop()
	<-l.ended
	l.inst.Close()
}
