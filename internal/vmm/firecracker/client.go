package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"banger/internal/linux"
)

const (
	requestTimeout = 10 * time.Second
	maxAnswer      = 1 << 20
	maxFault       = 1 << 10
)

// apiIdle is for how long a connection to the API waits for the next request: those that
// describe a machine follow each other, later ones are rare.
const apiIdle = time.Second

// client makes requests of the API of one Firecracker.
type client struct{ http http.Client }

func newClient(dir, socket string) *client {
	return &client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return linux.DialUnixIn(ctx, dir, socket)
		},
		IdleConnTimeout: apiIdle, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
	}}}
}

// fault is an error that Firecracker has answered with.
type fault struct{ message string }

func (f *fault) Error() string { return f.message }

func (c *client) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, requestTimeout, http.MethodGet, path, nil, out)
}

func (c *client) put(ctx context.Context, path string, body any) error {
	return c.do(ctx, requestTimeout, http.MethodPut, path, body, nil)
}

func (c *client) patch(ctx context.Context, path string, body any) error {
	return c.do(ctx, requestTimeout, http.MethodPatch, path, body, nil)
}

// do makes a request. An error names it, and has the text with which it was refused.
func (c *client) do(ctx context.Context, timeout time.Duration, method, path string, in, out any) error {
	err := c.exchange(ctx, timeout, method, path, in, out)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (c *client) exchange(ctx context.Context, timeout time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return faultOf(resp.Status, text)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// faultOf reads what an answer with an error says, which becomes one line of printable
// text.
func faultOf(status string, text []byte) error {
	var said struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(text, &said) != nil || said.Message == "" {
		said.Message = status
	}
	words := strings.Join(strings.Fields(said.Message), " ")
	return &fault{strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, words[:min(len(words), maxFault)])}
}
