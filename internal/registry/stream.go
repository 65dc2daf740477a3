package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"banger/api"
)

const (
	// A stream that brings less than paceBytes in paceWindow is broken off.
	paceWindow = 30 * time.Second
	paceBytes  = 1 << 10

	resumes     = 5 // attempts without a byte between them
	resumesAll  = 100
	resumePause = 200 * time.Millisecond
)

var errStalled = errors.New("the registry hardly sends any more")

// pace is a body that ends with errStalled when next to nothing arrives.
type pace struct {
	body  io.ReadCloser
	n     atomic.Int64
	seen  int64
	stall atomic.Bool
	timer *time.Timer
	end   func() bool
}

// paced watches over a body, also over a read that blocks.
func paced(ctx context.Context, body io.ReadCloser) io.ReadCloser {
	p := &pace{body: body}
	p.timer = time.AfterFunc(paceWindow, p.look)
	p.end = context.AfterFunc(ctx, func() { body.Close() })
	return p
}

func (p *pace) look() {
	n := p.n.Load()
	if n-p.seen < paceBytes {
		p.stall.Store(true)
		p.body.Close()
		return
	}
	p.seen = n
	p.timer.Reset(paceWindow)
}

func (p *pace) Read(b []byte) (int, error) {
	n, err := p.body.Read(b)
	p.n.Add(int64(n))
	if err != nil && err != io.EOF && p.stall.Load() {
		err = errStalled
	}
	return n, err
}

func (p *pace) Close() error {
	p.timer.Stop()
	p.end()
	return p.body.Close()
}

// blob is a stream that goes on where it broke.
type blob struct {
	ctx    context.Context
	r      *remote
	digest string
	size   int64
	at     int64
	body   io.ReadCloser
	err    error // that it was given up for
	failed int   // attempts since the last byte
	all    int
}

// open begins to read a blob at the byte from.
func (r *remote) open(ctx context.Context, digest string, size, from int64) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, r: r, digest: digest, size: size, at: from}
	if err := b.again(nil); err != nil {
		return nil, err
	}
	return b, nil
}

// again asks for what is left, as often as there is hope.
func (b *blob) again(why error) error {
	for {
		if b.failed > 0 {
			if b.failed > resumes || b.all > resumesAll {
				return explain(b.r.repo.Name(), fmt.Errorf("layer %s breaks off at byte %d of %d: %w", b.digest, b.at, b.size, why))
			}
			select {
			case <-b.ctx.Done():
				return b.ctx.Err()
			case <-time.After(resumePause << b.failed):
			}
		}
		span := ""
		if b.at > 0 { // with its end, without which some registries do not understand it
			span = fmt.Sprintf("bytes=%d-%d", b.at, b.size-1)
		}
		resp, err := b.r.ask(b.ctx, http.MethodGet, "blobs", b.digest, span)
		if err == nil {
			body := paced(b.ctx, resp.Body)
			if b.at > 0 && resp.StatusCode != http.StatusPartialContent {
				// It knows no ranges: what is here already comes once more.
				_, err = io.CopyN(io.Discard, body, b.at)
			}
			if err == nil {
				b.body = body
				return nil
			}
			body.Close()
		}
		if b.ctx.Err() != nil || api.CodeOf(err) != api.CodeUnavailable {
			return err
		}
		why = err
		b.failed++
		b.all++
	}
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	if b.at == b.size {
		return 0, io.EOF
	}
	if b.err != nil {
		return 0, b.err
	}
	for {
		n, err := b.body.Read(p[:min(int64(len(p)), b.size-b.at)])
		b.at += int64(n)
		if n > 0 {
			b.failed = 0
			return n, nil
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		b.body.Close()
		b.failed++
		b.all++
		if b.err = b.again(err); b.err != nil {
			return 0, b.err
		}
	}
}

// Close implements io.Closer.
func (b *blob) Close() error {
	return b.body.Close()
}
