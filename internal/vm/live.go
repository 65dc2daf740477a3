package vm

import (
	"context"
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/vmm"
)

const (
	bootTimeout   = 90 * time.Second // from the VMM's start to the agent's answer
	agentPatience = 10 * time.Second // how long a request waits for a channel that is being made anew
)

// live is what is momentarily true of a VM: its VMM and the channel to its agent,
// which is made anew whenever it breaks.
type live struct {
	inst    vmm.Instance
	engine  string
	started time.Time
	stop    context.CancelFunc
	ended   chan struct{} // closed when keep has returned

	mu      sync.Mutex
	conn    *guest.Conn
	ready   chan struct{} // closed while conn is usable
	version string
}

// connect makes the channel to the agent and configures the guest.
func connect(ctx context.Context, inst vmm.Instance, rec Record) (*guest.Conn, wire.Health, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
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
		return nil, wire.Health{}, err
	}
	entropy := make([]byte, 64)
	rand.Read(entropy)
	err = conn.Configure(ctx, wire.Configure{
		Hostname: rec.Name, MachineID: rec.MachineID, Time: time.Now().UnixNano(), Entropy: entropy,
	})
	var health wire.Health
	if err == nil {
		health, err = conn.Health(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, wire.Health{}, err
	}
	return conn, health, nil
}

// newLive takes a running VMM over. Conn may be nil: the channel is made then.
func newLive(inst vmm.Instance, engine string, rec Record, conn *guest.Conn, health wire.Health) *live {
	ctx, cancel := context.WithCancel(context.Background())
	l := &live{inst: inst, engine: engine, started: time.Now(), stop: cancel, ended: make(chan struct{}), ready: make(chan struct{})}
	if conn != nil {
		l.set(conn, health.Version)
	}
	go l.keep(ctx, rec)
	return l
}

// keep makes the channel anew whenever it breaks, until the VMM ends.
func (l *live) keep(ctx context.Context, rec Record) {
	defer close(l.ended)
	for {
		if conn := l.connection(); conn != nil {
			select {
			case <-ctx.Done():
				conn.Close()
				return
			case <-l.inst.Exited():
				conn.Close()
				return
			case <-conn.Done():
				conn.Close()
			}
			l.unset()
		}
		conn, health, err := connect(ctx, l.inst, rec)
		if err == nil {
			l.set(conn, health.Version)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.inst.Exited():
			return
		case <-time.After(time.Second):
		}
	}
}

func (l *live) set(conn *guest.Conn, version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.version = conn, version
	close(l.ready)
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

func (l *live) agentVersion() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version
}

// agent returns the transport to the agent; it waits a while for a channel that is
// being made anew.
func (l *live) agent(ctx context.Context) (http.RoundTripper, error) {
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
		return conn.Transport(), nil
	}
	return nil, api.Errorf(api.CodeGuest, "reach the agent: it does not answer").
		WithHint("banger vm logs shows the console; banger vm kill ends the VM")
}

// close lets go of the VMM, which runs on if it has not ended.
func (l *live) close() {
	l.stop()
	<-l.ended
	l.inst.Close()
}
