package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// The handshake of a serial channel. The host sends its magic and a nonce, the
// agent answers with its own magic and that nonce, and a new yamux session
// begins on the bytes that follow. Either magic is found at any place in the
// stream, so whatever was left of an earlier session is skipped.
const (
	nonceSize   = 16
	resend      = 500 * time.Millisecond
	maxDiscard  = 64 << 20
	discardTime = 10 * time.Second
)

func hostMagic(secret string) []byte {
	sum := sha256.Sum256([]byte("banger sync " + secret))
	return sum[:]
}

func agentMagic(secret string) []byte {
	sum := sha256.Sum256([]byte("banger ack " + secret))
	return sum[:]
}

// YamuxConfig is the configuration of both ends' sessions. Only the host sends
// keep-alives: the agent's writes may rightly stand still while no host is there.
func YamuxConfig(host bool) *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.EnableKeepAlive = host
	c.ConnectionWriteTimeout = 30 * time.Second
	c.MaxStreamWindowSize = 1 << 20
	return c
}

// Sync makes the host's end of a serial channel ready for a yamux client
// session and returns the connection to run it on. It repeats its call until the
// agent answers or ctx ends, since the agent may not have booted; once bytes
// arrive, the answer must be among the first 64 MiB and within 10 seconds.
// It does not close conn.
func Sync(ctx context.Context, conn net.Conn, secret string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s := &syncer{conn: conn, magic: hostMagic(secret), answered: make(chan struct{}), sent: make(chan [nonceSize]byte, 1)}
	ended := make(chan error, 1)
	go func() { ended <- s.call() }()
	rest, err := s.listen(agentMagic(secret), ended)
	if !s.quit {
		close(s.answered)
	}
	if err != nil {
		_ = conn.SetDeadline(time.Unix(1, 0)) // ends a call that is being written
	}
	if !s.calledBack {
		<-ended
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("synchronise serial channel: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("synchronise serial channel: %w", err)
	}
	return &prefixed{Conn: conn, rest: rest}, nil
}

// syncer is one run of Sync. Every call has a nonce of its own, and only the
// answer to the last one counts: then no call is left on its way that would tear
// the new session down. The first answer to any call ends the calling.
type syncer struct {
	conn       net.Conn
	magic      []byte
	answered   chan struct{}
	sent       chan [nonceSize]byte // the last nonce, when calling has ended
	quit       bool
	calledBack bool
}

func (s *syncer) call() error {
	ticker := time.NewTicker(resend)
	defer ticker.Stop()
	for {
		var nonce [nonceSize]byte
		_, _ = rand.Read(nonce[:])
		if _, err := s.conn.Write(append(bytes.Clone(s.magic), nonce[:]...)); err != nil {
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
			return err
		}
		select {
		case <-s.answered:
			s.sent <- nonce
			return nil
		case <-ticker.C:
		}
	}
}

func (s *syncer) listen(magic []byte, ended chan error) (rest []byte, err error) {
	buf := make([]byte, 0, 128<<10)
	chunk := make([]byte, 64<<10)
	var last [nonceSize]byte
	for total := 0; total < maxDiscard; {
		n, err := s.conn.Read(chunk)
		if total == 0 && n > 0 {
			timer := time.AfterFunc(discardTime, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
			defer timer.Stop()
		}
		total += n
		buf = append(buf, chunk[:n]...)
		for {
			at := bytes.Index(buf, magic)
			if at < 0 {
				buf = keepTail(buf, len(magic)-1)
				break
			}
			if len(buf) < at+len(magic)+nonceSize {
				break
			}
			nonce := [nonceSize]byte(buf[at+len(magic):])
			buf = buf[at+len(magic)+nonceSize:]
			if !s.quit {
				s.quit = true
				close(s.answered)
				s.calledBack = true
				if err := <-ended; err != nil {
					return nil, err
				}
				last = <-s.sent
			}
			if nonce == last {
				return bytes.Clone(buf), nil
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("no answer among the first %d bytes", maxDiscard)
}

func keepTail(buf []byte, n int) []byte {
	if len(buf) <= n {
		return buf
	}
	return append(buf[:0], buf[len(buf)-n:]...)
}

// prefixed is a connection of which some bytes have been read already.
type prefixed struct {
	net.Conn
	rest []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
