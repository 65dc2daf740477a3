package wire

import (
	"bytes"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/yamux"
)

// Listener is the agent's end of a serial channel: it accepts the streams that
// the host opens, whichever session they belong to.
type Listener struct {
	port    io.ReadWriteCloser
	secret  string
	streams chan net.Conn
	writes  chan []byte
	done    chan struct{}
	close   sync.Once
	err     error
}

// Listen serves the agent's end of the channel on port until it is closed or
// reading the port gives an error. A port that reports io.EOF while no host is
// connected must be wrapped so that it waits instead.
func Listen(port io.ReadWriteCloser, secret string) *Listener {
	l := &Listener{
		port: port, secret: secret,
		streams: make(chan net.Conn), writes: make(chan []byte), done: make(chan struct{}),
	}
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
	})
}

// write alone writes to the port, so that a session whose write stands still can
// be given up; the bytes already handed over get out when a host reads again.
func (l *Listener) write() {
	for {
		select {
		case b := <-l.writes:
			if _, err := l.port.Write(b); err != nil {
				l.stop(err)
				return
			}
		case <-l.done:
			return
		}
	}
}

func (l *Listener) read() {
	magic := hostMagic(l.secret)
	chunk := make([]byte, 64<<10)
	var tail, nonce []byte // the bytes before chunk; what is there of the nonce
	var inNonce bool
	var link *serialLink
	defer func() {
		if link != nil {
			_ = link.Close()
		}
	}()
	for {
		n, err := l.port.Read(chunk)
		if err != nil {
			l.stop(err)
			return
		}
		for data := chunk[:n]; len(data) > 0; {
			if inNonce {
				take := min(nonceSize-len(nonce), len(data))
				nonce, data = append(nonce, data[:take]...), data[take:]
				if len(nonce) == nonceSize {
					link = l.begin(nonce)
					inNonce, nonce = false, nil
				}
				continue
			}
			window := append(bytes.Clone(tail), data...)
			at := bytes.Index(window, magic)
			if at < 0 {
				if link != nil {
					link.feed(bytes.Clone(data))
				} else {
					l.hangUp()
				}
				tail = keepTail(window, len(magic)-1)
				break
			}
			if link != nil {
				_ = link.Close()
				link = nil
			}
			data = window[at+len(magic):]
			tail, inNonce = nil, true
		}
	}
}

// hangUp answers a host that speaks in a session of an agent before this one, with
// what is no frame of yamux's (its version is 0), so that the host notices and calls
// anew. A host that has only begun to call skips it.
func (l *Listener) hangUp() {
	select {
	case l.writes <- bytes.Repeat([]byte{0xff}, 4<<10):
	default: // the writer stands still: nobody listens
	}
}

// begin answers a host's call and starts a session.
func (l *Listener) begin(nonce []byte) *serialLink {
	select {
	case l.writes <- append(agentMagic(l.secret), nonce...):
	case <-l.done:
		return nil
	}
	link := &serialLink{l: l, in: make(chan []byte), closed: make(chan struct{})}
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
	l      *Listener
	in     chan []byte
	rest   []byte
	closed chan struct{}
	once   sync.Once
}

func (s *serialLink) feed(b []byte) {
	select {
	case s.in <- b:
	case <-s.closed:
	case <-s.l.done:
	}
}

func (s *serialLink) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		select {
		case s.rest = <-s.in:
		case <-s.closed:
			return 0, io.EOF
		case <-s.l.done:
			return 0, io.EOF
		}
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *serialLink) Write(b []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	select {
	case s.l.writes <- bytes.Clone(b):
		return len(b), nil
	case <-s.closed:
		return 0, io.ErrClosedPipe
	case <-s.l.done:
		return 0, io.ErrClosedPipe
	}
}

func (s *serialLink) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}
