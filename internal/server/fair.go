package server

import (
	"net"
	"sync"
)

// maxConnections is how many connections one user may have at a time; more than
// any use of hundreds of VMs takes, and few enough to leave the daemon's file
// descriptors to others. Root may have any number.
const maxConnections = 2048

// fairListener closes connections of users who have too many.
type fairListener struct {
	net.Listener
	uid func(net.Conn) (uint32, error)

	mu   sync.Mutex
	open map[uint32]int
}

func fair(l net.Listener, uid func(net.Conn) (uint32, error)) *fairListener {
	return &fairListener{Listener: l, uid: uid, open: map[uint32]int{}}
}

func (l *fairListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		unix, ok := c.(*net.UnixConn)
		if !ok {
			return c, nil // without credentials, and refused for that
		}
		uid, err := l.uid(c)
		if err != nil || uid == 0 {
			return c, nil
		}
		if l.take(uid) {
			return &countedConn{UnixConn: unix, release: sync.OnceFunc(func() { l.release(uid) })}, nil
		}
		_ = c.Close()
	}
}

func (l *fairListener) take(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid] >= maxConnections {
		return false
	}
	l.open[uid]++
	return true
}

func (l *fairListener) release(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid]--; l.open[uid] == 0 {
		delete(l.open, uid)
	}
}

// countedConn counts until it is closed.
type countedConn struct {
	*net.UnixConn
	release func()
}

func (c *countedConn) Close() error {
	defer c.release()
	return c.UnixConn.Close()
}
