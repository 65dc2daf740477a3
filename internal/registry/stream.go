package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"banger/api"
)

const (
	resumes    = 5 // attempts that bring next to nothing, one after the other
	resumesAll = 100
)

// blob is a stream that goes on where it broke.
type blob struct {
	ctx    context.Context
	r      *remote
	digest string
	size   int64
	at     int64
	body   io.ReadCloser
	err    error // that it was given up for
	got    int64 // bytes of this attempt
	failed int   // attempts since one that brought something
	all    int
}

// open begins to read a blob at the byte from.
func (r *remote) open(ctx context.Context, digest string, size, from int64) (io.ReadCloser, error) {
	ctx = context.WithValue(ctx, layerKey{}, r.path("blobs", digest))
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
				return b.broken(why)
			}
			select {
			case <-b.ctx.Done():
				return b.ctx.Err()
			case <-time.After(b.r.pause << (b.failed - 1)):
			}
		}
		span := ""
		if b.at > 0 { // with its end, without which some registries do not understand it
			span = fmt.Sprintf("bytes=%d-%d", b.at, b.size-1)
		}
		resp, err := b.r.ask(b.ctx, http.MethodGet, "blobs", b.digest, span)
		if err == nil {
			body := resp.Body
			if b.at > 0 && resp.StatusCode != http.StatusPartialContent {
				// It knows no ranges: what is here already comes once more.
				if _, err = io.CopyN(io.Discard, body, b.at); err != nil {
					err = explain(b.r.repo.Name(), err)
				}
			}
			if err == nil {
				b.body, b.got = body, 0
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

// broken is why there is no more hope.
func (b *blob) broken(why error) error {
	name := b.r.repo.Name()
	reason := strings.TrimPrefix(plain{why}.Error(), "pull "+name+": ")
	return api.Errorf(api.CodeUnavailable, "pull %s: layer %s breaks off at byte %d of %d: %s", name, b.digest, b.at, b.size, reason).WithHint(tryAgain)
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
			if b.got += int64(n); b.got >= paceBytes { // less is no reason to hope for more
				b.failed = 0
			}
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
