package vm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"banger/api"
)

// console is the file of a VM's console. Positions in it count from the first byte
// that was there when the daemon began, whatever has been dropped since.
type console struct {
	path string

	mu      sync.Mutex
	dropped int64 // bytes
}

// trim makes a long file short again.
func (c *console) trim(most, keep int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := dropHead(c.path, most, keep)
	c.dropped += n
	return err
}

// followPause is how long a follower waits before it looks for more.
const followPause = 100 * time.Millisecond

// follower reads a console and what is added to it.
type follower struct {
	ctx  context.Context
	c    *console
	gone <-chan struct{} // closed when there will be no more, or when quit is
	quit <-chan struct{} // closed when the daemon ends
	f    *os.File        // nil: there is none yet
	at   int64
}

// Read returns io.EOF when the VM is gone and all has been read. What was dropped
// before it could be read is left out.
func (r *follower) Read(p []byte) (int, error) {
	for {
		ended := false
		select {
		case <-r.gone:
			ended = true // what is not there now never will be
		default:
		}
		n, err := r.next(p)
		if n > 0 || err != nil {
			return n, err
		}
		if ended {
			select {
			case <-r.quit:
				return 0, api.Errorf(api.CodeUnavailable, "follow console: the daemon is shutting down")
			default:
				return 0, io.EOF
			}
		}
		select {
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		case <-r.gone:
		case <-time.After(followPause):
		}
	}
}

// next reads what there is; 0 bytes where there is nothing.
func (r *follower) next(p []byte) (int, error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.f == nil {
		f, err := os.Open(r.c.path)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		r.f = f
	}
	info, err := r.f.Stat()
	if err != nil {
		return 0, err
	}
	r.at = min(max(r.at, r.c.dropped), r.c.dropped+info.Size())
	n, err := r.f.ReadAt(p, r.at-r.c.dropped)
	r.at += int64(n)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (r *follower) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// lastLines returns where in the first size bytes of f the last n lines begin.
func lastLines(f io.ReaderAt, size int64, n int) (int64, error) {
	if n <= 0 {
		return size, nil
	}
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		from := max(0, end-int64(len(buf)))
		part := buf[:end-from]
		if _, err := f.ReadAt(part, from); err != nil && err != io.EOF {
			return 0, err
		}
		if end == size && part[len(part)-1] == '\n' {
			part = part[:len(part)-1] // it ends the last line
		}
		for {
			i := bytes.LastIndexByte(part, '\n')
			if i < 0 {
				break
			}
			if n--; n <= 0 {
				return from + int64(i) + 1, nil
			}
			part = part[:i]
		}
		end = from
	}
	return 0, nil
}

// Logs opens what is kept of a VM's console.
func (s *Service) Logs(ctx context.Context, caller uint32, ref string, q api.ReadLogs) (io.ReadCloser, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return nil, err
	}
	r := &follower{ctx: ctx, c: o.console, gone: o.gone, quit: o.quit}
	o.console.mu.Lock()
	defer o.console.mu.Unlock()
	r.at = o.console.dropped
	r.f, err = os.Open(o.console.path)
	if errors.Is(err, fs.ErrNotExist) {
		if r.f = nil; q.Follow {
			return r, nil
		}
		return nil, api.Errorf(api.CodeConflict, "console of VM %q: it was never started", o.name()).WithHint("banger vm start %s", o.name())
	}
	if err != nil {
		return nil, err
	}
	info, err := r.f.Stat()
	from := int64(0)
	if err == nil && q.Tail != nil {
		from, err = lastLines(r.f, info.Size(), *q.Tail)
	}
	if err != nil {
		return nil, errors.Join(err, r.f.Close())
	}
	if q.Follow {
		r.at += from
		return r, nil
	}
	// A guest may write faster than a client reads.
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(r.f, from, info.Size()-from), r.f}, nil
}
