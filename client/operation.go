package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"banger/api"
)

const maxEventLine = 1 << 20

// Operations returns the caller's operations, all of them for root, oldest first.
func (c *Client) Operations(ctx context.Context) ([]api.Operation, error) {
	return list[api.Operation](ctx, c, "operations")
}

// Operation returns one operation as it is now.
func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	return get[api.Operation](ctx, c, "operations", id)
}

// Cancel asks an operation to end; Wait says when and how it did.
func (c *Client) Cancel(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: []string{"operations", id}}, nil, nil)
}

// Wait waits until an operation has ended and hands its progress to report, which
// may be nil. One that did not succeed is returned together with its error. Where
// the connection breaks it is made again for some ten seconds; a daemon that was
// restarted meanwhile knows the operation no more, which is unavailable. The end
// of ctx ends the waiting, not the operation.
func (c *Client) Wait(ctx context.Context, id string, report api.Reporter) (api.Operation, error) {
	var events int // seen in all
	tries, seen, reconnecting := 0, 0, false
	for {
		op, err := c.follow(ctx, id, func(p api.Progress) {
			events++
			if report != nil {
				report(p)
			}
		})
		switch {
		case err == nil:
			return op, outcome(op)
		case ctx.Err() != nil:
			return api.Operation{}, err
		case api.CodeOf(err) == api.CodeNotFound && reconnecting:
			return api.Operation{}, api.Errorf(api.CodeUnavailable, "wait for operation %s: the daemon restarted, how it ended is unknown", id).
				WithHint("look at the object that it was about: banger vm list")
		case api.CodeOf(err) != api.CodeUnavailable:
			return api.Operation{}, err
		}
		if events > seen {
			tries, seen = 0, events
		}
		if tries++; tries > reconnectTries {
			return api.Operation{}, err
		}
		reconnecting = true
		select {
		case <-ctx.Done():
			return api.Operation{}, err
		case <-time.After(c.pause):
		}
	}
}

func outcome(op api.Operation) error {
	switch {
	case op.Error != nil:
		return op.Error
	case op.Status != api.OperationSucceeded:
		return api.Errorf(api.CodeInternal, "%s %s: %s without an error", op.Kind, op.Target, op.Status)
	}
	return nil
}

// follow reads the events of an operation until the last. The format is that of
// server-sent events (WHATWG HTML, 9.2), of which the daemon uses the fields
// event and data, one line each, and comments.
func (c *Client) follow(ctx context.Context, id string, progress func(api.Progress)) (api.Operation, error) {
	r := request{method: http.MethodGet, path: []string{"operations", id, "events"}}
	resp, err := c.send(ctx, r)
	if err != nil {
		return api.Operation{}, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEventLine)
	event, data := "", ""
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			event = value
		case "data":
			data = value
		}
		if lines.Text() != "" {
			continue
		}
		switch event { // the empty line ends an event
		case "progress":
			p, err := decodeEvent[api.Progress](r, data)
			if err != nil {
				return api.Operation{}, err
			}
			progress(p)
		case "done":
			return decodeEvent[api.Operation](r, data)
		}
		event, data = "", ""
	}
	err = lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		return api.Operation{}, api.Errorf(api.CodeInternal, "%s: an event is longer than %d bytes", r, maxEventLine)
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return api.Operation{}, broken(ctx, r, err)
}

func decodeEvent[T any](r request, data string) (T, error) {
	var v T
	if err := json.Unmarshal([]byte(data), &v); err != nil {
		return v, api.Errorf(api.CodeInternal, "%s: decode an event: %w", r, err)
	}
	return v, nil
}
