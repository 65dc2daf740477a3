// Package guest is the host's side of the channel to the agent in a guest: it
// makes a raw connection into one that carries many HTTP requests, and makes the
// few requests that the daemon itself has. The guest is hostile: every answer is
// bounded in size and time, and a guest that opens streams of its own is cut off.
package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/yamux"

	"banger/api"
	"banger/internal/guest/wire"
)

// Dialer opens the raw channel: once for a serial one, for each connection for
// one of streams.
type Dialer func(context.Context) (net.Conn, error)

// Kind says what a Dialer's connections are. The values are those of vmm.Channel.
type Kind string

// The kinds of channel.
const (
	Serial Kind = "serial" // one byte stream, on which connections are multiplexed
	Stream Kind = "stream" // each dial is a connection to the agent
)

const (
	requestTimeout = 10 * time.Second
	// configureTimeout bounds what may take a slow guest on a busy host long: file systems
	// that grow, a network that is set up.
	configureTimeout = time.Minute
	maxBody          = 64 << 10
	maxMessage       = 1 << 10
	maxAnswer        = 4 << 20
	// bulkBuffer is how much of an archive goes into the channel at once: there each
	// piece costs the guest a wake-up.
	bulkBuffer = 128 << 10
)

// Conn is a connection to an agent. Its methods may be called concurrently.
type Conn struct {
	transport *http.Transport
	bulk      *http.Transport // for archives
	session   *yamux.Session  // nil for streams
	raw       net.Conn
	done      chan struct{}
	once      sync.Once
}

// Connect reaches the agent; what it speaks is seen by Configure. It waits until there is
// an agent, as long as ctx allows: on a serial channel for the answer to
// the handshake, whose secret is sync, else for the first connection.
func Connect(ctx context.Context, kind Kind, dial Dialer, sync string) (*Conn, error) {
	c := &Conn{done: make(chan struct{})}
	open := dial
	if kind == Serial {
		open = func(context.Context) (net.Conn, error) {
			stream, err := c.session.OpenStream()
			if err != nil {
				return nil, err
			}
			return halfStream{stream}, nil
		}
	}
	c.transport = &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return open(ctx) },
		MaxIdleConns:           4,
		MaxResponseHeaderBytes: maxBody,
		ResponseHeaderTimeout:  30 * time.Second,
		DisableCompression:     true,
		IdleConnTimeout:        time.Minute,
	}
	c.bulk = c.transport.Clone()
	c.bulk.MaxIdleConnsPerHost = -1 // a connection that waits would keep its buffers
	c.bulk.ReadBufferSize, c.bulk.WriteBufferSize = bulkBuffer, bulkBuffer
	begin := func() error { return c.startSession(ctx, dial, sync) }
	if kind == Stream {
		begin = func() error { return c.watch(ctx, dial) }
	}
	if err := begin(); err != nil {
		return nil, err
	}
	return c, nil
}

// halfStream is a stream whose two directions end one by one. yamux's Close ends
// the own one, and the other one some minutes later if the guest does not.
type halfStream struct{ *yamux.Stream }

func (s halfStream) CloseWrite() error { return s.Close() }

func (c *Conn) startSession(ctx context.Context, dial Dialer, secret string) error {
	raw, err := dial(ctx)
	if err != nil {
		return api.Errorf(api.CodeGuest, "connect to agent: %w", err)
	}
	synced, err := wire.Sync(ctx, raw, secret)
	if err != nil {
		_ = raw.Close()
		return api.Errorf(api.CodeGuest, "connect to agent: %w", err)
	}
	session, err := yamux.Client(synced, wire.YamuxConfig(true))
	if err != nil {
		_ = raw.Close()
		return api.Errorf(api.CodeInternal, "connect to agent: %w", err)
	}
	c.raw, c.session = raw, session
	go func() {
		// A guest has no business opening streams; Accept also returns at the session's end.
		_, _ = session.Accept()
		c.Close()
	}()
	return nil
}

// watch has a connection end with the agent: the answer to its request does.
func (c *Conn) watch(ctx context.Context, dial Dialer) error {
	raw, err := dial(ctx)
	if err == nil {
		_, err = io.WriteString(raw, "GET /alive HTTP/1.1\r\nHost: agent\r\n\r\n")
	}
	if err != nil {
		if raw != nil {
			_ = raw.Close()
		}
		return api.Errorf(api.CodeGuest, "connect to agent: %w", err)
	}
	c.raw = raw
	go func() {
		_, _ = io.CopyN(io.Discard, raw, maxBody) // what is longer is no agent's
		c.Close()
	}()
	return nil
}

// plain returns the printable ones among the first n bytes of what a guest says,
// which is shown on terminals.
func plain(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return -1
	}, s[:min(n, len(s))])
}

// Configure tells the agent the guest's name, time and the like, and checks that it speaks
// a protocol of ours: it has to come first on a connection. Of an empty cfg the answer is all
// that comes.
func (c *Conn) Configure(ctx context.Context, cfg wire.Configure) (wire.Greeting, error) {
	var g wire.Greeting
	if err := c.doWithin(ctx, configureTimeout, "configure guest", http.MethodPost, "/configure", cfg, &g); err != nil {
		return g, err
	}
	if g.Protocol < wire.MinProtocol || g.Protocol > wire.Protocol {
		return g, api.Errorf(api.CodeGuest, "configure guest: its agent speaks protocol %d, the daemon %d to %d",
			g.Protocol, wire.MinProtocol, wire.Protocol).WithHint("stop the VM and start it again")
	}
	return g, nil
}

// PowerOff asks the agent to power the guest off, and to be done before the deadline
// of ctx, if that has one. It returns when the agent has taken the request up.
func (c *Conn) PowerOff(ctx context.Context) error {
	var body wire.PowerOff
	if deadline, ok := ctx.Deadline(); ok {
		body.Patience = time.Until(deadline)
	}
	return c.do(ctx, "power guest off", http.MethodPost, "/poweroff", body, nil)
}

// Transport makes requests to the agent, whatever their host.
func (c *Conn) Transport() http.RoundTripper { return c.transport }

// Done is closed when the session has broken, when the agent has ended, or when Close
// was called.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close lets go of the channel; requests under way end with errors.
func (c *Conn) Close() {
	c.once.Do(func() {
		if c.raw != nil {
			_ = c.raw.Close()
		}
		if c.session != nil {
			_ = c.session.Close()
		}
		if c.transport != nil {
			c.transport.CloseIdleConnections()
		}
		close(c.done)
	})
}

func (c *Conn) do(ctx context.Context, what, method, path string, in, out any) error {
	return c.doWithin(ctx, requestTimeout, what, method, path, in, out)
}

func (c *Conn) doWithin(ctx context.Context, timeout time.Duration, what, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return api.Errorf(api.CodeGuest, "%s: %w", what, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return api.Errorf(api.CodeGuest, "%s: %w", what, err)
	}
	if resp.StatusCode >= 400 {
		var e wire.Error
		if json.Unmarshal(answer, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		return api.Errorf(api.CodeGuest, "%s: %q", what, plain(e.Message, maxMessage))
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return api.Errorf(api.CodeGuest, "%s: the answer is not understood: %w", what, err)
	}
	return nil
}
