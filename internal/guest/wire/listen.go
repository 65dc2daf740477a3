package wire

import (
	"bytes"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/yamux"
)

// maxPending is how many bytes wait for the port at most, about: more than the port
// takes at once.
const maxPending = 64 << 10

// Listener is the agent's end of a serial channel: it accepts the streams that
// the host opens, whichever session they belong to.
type Listener struct {
	port    io.ReadWriteCloser
	secret  string
	streams chan net.Conn
	done    chan struct{}
	close   sync.Once
	err     error

	// The port is read by the listener itself until a session begins, then by that
	// session, into its own buffers, until it ends. Whoever reads has calls.
	calls calls

	mu      sync.Mutex
	changed sync.Cond   // any of the following
	current *serialLink // the session that may write; nil before the first
	pending []byte      // what the port is to be written
	stopped bool
}

// Listen serves the agent's end of the channel on port until it is closed or
// reading the port gives an error. A port that reports io.EOF while no host is
// connected must be wrapped so that it waits instead.
func Listen(port io.ReadWriteCloser, secret string) *Listener {
	l := &Listener{
		port: port, secret: secret, streams: make(chan net.Conn), done: make(chan struct{}),
		calls: calls{port: port, magic: newMagic(hostMagic(secret))},
	}
	l.changed.L = &l.mu
	go l.write()
	go l.read()
	return l
}

// Accept returns the next stream that the host has opened.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.streams:
		return c, nil
	case <-l.done:
		return nil, l.err
	}
}

// Close ends the session and closes the port.
func (l *Listener) Close() error {
	l.stop(net.ErrClosed)
	return nil
}

// Addr is of no meaning; it makes a net.Listener.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: SerialPort, Net: "serial"} }

func (l *Listener) stop(err error) {
	l.close.Do(func() {
		l.err = err
		close(l.done)
		_ = l.port.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stopped = true
		l.changed.Broadcast()
	})
}

// write alone writes to the port, so that a session whose write stands still can
// be given up; the bytes already handed over get out when a host reads again.
func (l *Listener) write() {
	var out []byte
	for {
		l.mu.Lock()
		for len(l.pending) == 0 && !l.stopped {
			l.changed.Wait()
		}
		out, l.pending = l.pending, out[:0]
		stopped := l.stopped
		l.changed.Broadcast()
		l.mu.Unlock()
		if stopped {
			return
		}
		if _, err := l.port.Write(out); err != nil {
			l.stop(err)
			return
		}
	}
}

// send hands over what a session writes, if it is still the current one.
func (l *Listener) send(from *serialLink, b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.current == from && len(l.pending) >= maxPending && !l.stopped {
		l.changed.Wait()
	}
	if l.current != from || l.stopped {
		return 0, io.ErrClosedPipe
	}
	l.pending = append(l.pending, b...)
	l.changed.Broadcast()
	return len(b), nil
}

// read serves one session after the other.
func (l *Listener) read() {
	for {
		nonce, err := l.calls.next(l.hangUp)
		if err != nil {
			l.stop(err)
			return
		}
		link := l.begin(nonce)
		if link == nil {
			return
		}
		select {
		case <-link.over:
		case <-l.done:
			_ = link.Close()
			return
		}
	}
}

// hangUp answers a host that speaks in a session of an agent before this one, with
// what is no frame of yamux's (its version is 0), so that the host notices and calls
// anew. A host that has only begun to call skips it.
func (l *Listener) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) == 0 { // else the writer stands still: nobody listens
		l.pending = append(l.pending, bytes.Repeat([]byte{0xff}, 4<<10)...)
		l.changed.Broadcast()
	}
}

// begin answers a host's call and starts a session. What a former one had to say is
// of no use any more.
func (l *Listener) begin(nonce []byte) *serialLink {
	link := &serialLink{l: l, over: make(chan struct{})}
	l.mu.Lock()
	l.current = link
	l.pending = append(append(l.pending[:0], agentMagic(l.secret)...), nonce...)
	l.changed.Broadcast()
	l.mu.Unlock()
	session, err := yamux.Server(link, YamuxConfig(false))
	if err != nil {
		return nil // an invalid configuration only
	}
	go func() {
		defer func() { _ = session.Close() }()
		for {
			c, err := session.Accept()
			if err != nil {
				return
			}
			select {
			case l.streams <- c:
			case <-l.done:
				return
			}
		}
	}()
	return link
}

// serialLink is what a session takes for its connection.
type serialLink struct {
	l    *Listener
	over chan struct{} // closed when it reads the port no more

	mu      sync.Mutex
	closed  bool
	reading bool
}

// Read reads the port. The session ends where the host calls anew.
func (s *serialLink) Read(b []byte) (int, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, io.EOF
	}
	s.reading = true
	s.mu.Unlock()

	n, called, err := s.l.calls.read(b)
	if err != nil {
		s.l.stop(err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	switch {
	case s.closed: // meanwhile
		close(s.over)
		return 0, io.EOF
	case called:
		s.closed = true
		close(s.over)
		return 0, io.EOF
	}
	return n, err
}

func (s *serialLink) Write(b []byte) (int, error) { return s.l.send(s, b) }

// Close ends it. A Read that waits for the port then goes on to wait for whatever the
// host says next, which is a call.
func (s *serialLink) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		if !s.reading {
			close(s.over)
		}
	}
	s.mu.Unlock()
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.current == s {
		s.l.current = nil
		s.l.changed.Broadcast()
	}
	return nil
}
