package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"banger/api"
	"banger/internal/guest/wire"
)

const (
	// maxLoans is how often a guest is given a program for one request: it should keep it.
	maxLoans = 4
	maxWant  = 4 << 10 // bytes of what it asks for
)

// Packer finds a program of this host; what it returns writes it as a tar archive.
type Packer func(ctx context.Context, program string) (write func(io.Writer) error, err error)

// Lend gives the guest the programs that it asks for, until ctx or the channel ends, or
// the guest has had enough. An agent that does not borrow is no error.
func (c *Conn) Lend(ctx context.Context, pack Packer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/wants", nil)
	if err != nil {
		return err
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil // nor is there an ssh session then
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil // of an older version
	}
	wants := json.NewDecoder(io.LimitReader(resp.Body, maxLoans*maxWant))
	for range maxLoans {
		var want wire.Want
		if err := wants.Decode(&want); err != nil {
			return nil // the channel has ended
		}
		if want.Program != wire.ProgramRsync {
			return api.Errorf(api.CodeGuest, "the guest wants a program that it is not to have: %q", plain(want.Program, 64))
		}
		if err := c.lend(ctx, want.Program, pack); err != nil && ctx.Err() == nil {
			return fmt.Errorf("lend %s: %w", want.Program, err)
		}
	}
	return nil
}

// lend sends one program, or says why not.
func (c *Conn) lend(ctx context.Context, name string, pack Packer) error {
	write, missing := pack(ctx, name)
	if missing != nil {
		text, err := json.Marshal(wire.Error{Message: missing.Error()})
		if err != nil {
			return err
		}
		return c.sendLoan(ctx, "application/json", bytes.NewReader(text))
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }()
	defer r.Close() // ends the writing
	return c.sendLoan(ctx, "application/x-tar", chunked(r))
}

func (c *Conn) sendLoan(ctx context.Context, kind string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://agent/lent", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := c.bulk.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 400 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
		return said("lend", text)
	}
	return nil
}
