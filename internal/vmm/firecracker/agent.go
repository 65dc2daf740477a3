package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// connectPatience is how long a guest may take to accept a connection, once its agent
// has said that it listens.
const connectPatience = 20 * time.Second

// maxReply is the most that Firecracker answers to CONNECT: "OK <port>".
const maxReply = 32

// errRefused says that nobody listens in the guest.
var errRefused = errors.New("nobody listens at that port of the guest")

// agent is the way to a guest's agent by Firecracker's vsock, which is a socket on the
// host. That it listens it says itself, once, by a connection to readySocket.
type agent struct {
	dir   string
	ready chan struct{} // closed when it listens

	once     sync.Once
	mu       sync.Mutex
	listener net.Listener
}

func newAgent(dir string) *agent { return &agent{dir: dir, ready: make(chan struct{})} }

// listen waits for the agent's word.
func (a *agent) listen() error {
	path := filepath.Join(a.dir, readySocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := linux.ListenUnix(path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o666); err != nil { // the VMM connects to it; nobody else can get to it
		return errors.Join(err, l.Close())
	}
	a.mu.Lock()
	a.listener = l
	a.mu.Unlock()
	go func() {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
			a.set()
		}
	}()
	return nil
}

// set says that the agent listens. Nobody waits for its word any more: a guest that
// gives it again and again is refused by Firecracker.
func (a *agent) set() {
	a.once.Do(func() { close(a.ready) })
	a.close()
}

// close stops waiting.
func (a *agent) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listener != nil {
		_ = a.listener.Close()
		_ = os.Remove(filepath.Join(a.dir, readySocket))
		a.listener = nil
	}
}

// find finds out whether the agent of a machine that an earlier daemon started listens
// already.
func (a *agent) find(ctx context.Context) {
	if err := a.listen(); err != nil { // nothing is lost but time
		a.set()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	c, err := a.connect(ctx, wire.AgentPort)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, errRefused) { // else it will say so
		a.set()
	}
}

// dial connects to the agent, once it listens, unless the VMM ends before.
func (a *agent) dial(ctx context.Context, exited <-chan struct{}) (net.Conn, error) {
	select {
	case <-a.ready:
	case <-exited:
		return nil, errors.New("connect to agent: the VMM has ended")
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the agent: %w", ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	return a.connect(ctx, wire.AgentPort)
}

// connect makes a connection to a port of the guest's.
func (a *agent) connect(ctx context.Context, port int) (net.Conn, error) {
	c, err := linux.DialUnixIn(ctx, a.dir, vsockSocket)
	for wait := time.Millisecond; stands(err) && ctx.Err() == nil; wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait) // many connect at the same time
		c, err = linux.DialUnixIn(ctx, a.dir, vsockSocket)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of the guest: %w", port, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err = shake(c, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to port %d of the guest: %w", port, err), c.Close())
	}
	return c, nil
}

// shake asks Firecracker for a connection, which it is when it has answered. What the
// guest says after is left to be read.
func shake(c net.Conn, port int) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return err
	}
	var reply []byte
	for b := make([]byte, 1); len(reply) < maxReply; {
		n, err := c.Read(b)
		if n == 0 {
			if len(reply) == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
				return errRefused
			}
			return err
		}
		if b[0] == '\n' {
			if len(reply) > 3 && string(reply[:3]) == "OK " {
				return nil
			}
			break
		}
		reply = append(reply, b[0])
	}
	return fmt.Errorf("the VMM answers %q", reply)
}

// stands says whether a socket is there whose owner does not accept connections for the
// moment: others wait for it, unix(7).
func stands(err error) bool { return errors.Is(err, syscall.EAGAIN) }
