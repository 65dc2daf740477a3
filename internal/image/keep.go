package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"sync"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/space"
)

// spool is a blob on its way into a file, from which it can be read meanwhile.
type spool struct {
	file *os.File
	room space.Room
	sum  hash.Hash

	mu   sync.Mutex
	more *sync.Cond
	n    int64
	done bool
	err  error // why there will not be more
}

func newSpool(file *os.File, room space.Room) *spool {
	s := &spool{file: file, room: room, sum: sha256.New()}
	s.more = sync.NewCond(&s.mu)
	return s
}

// resume takes up what an earlier spool has left in the file.
func (s *spool) resume() (err error) {
	s.n, err = io.CopyBuffer(s.sum, onlyReader{s.file}, make([]byte, bufferSize))
	return err
}

// fill reads the blob to its end and compares it with what it is to be.
func (s *spool) fill(ctx context.Context, blob Blob, progress func(n int64)) {
	err := s.receive(ctx, blob, progress)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.err = true, err
	s.more.Broadcast()
}

func (s *spool) receive(ctx context.Context, blob Blob, progress func(n int64)) error {
	had := s.n
	if had == 0 || had != blob.Size {
		if err := s.append(ctx, blob, progress); err != nil {
			return err
		}
	} else if blob.Offered != nil {
		if err := blob.Offered(ctx); err != nil {
			return err
		}
	}
	if blob.Size >= 0 && s.n != blob.Size {
		return api.Errorf(api.CodeInvalid, "blob %s has %d bytes, not %d", blob.Digest, s.n, blob.Size)
	}
	got := "sha256:" + hex.EncodeToString(s.sum.Sum(nil))
	switch {
	case blob.Digest == "" || got == blob.Digest:
		return nil
	case had > 0:
		return api.Errorf(api.CodeInvalid, "blob %s: what an earlier pull left of it was damaged", blob.Digest).WithHint("pull once more: it then comes whole")
	}
	return api.Errorf(api.CodeInvalid, "blob %s: its content has the digest %s", blob.Digest, got)
}

// append reads what is not here yet.
func (s *spool) append(ctx context.Context, blob Blob, progress func(n int64)) error {
	r, err := blob.Open(ctx, s.n)
	if err != nil {
		return err
	}
	defer r.Close()
	progress(s.n)
	buf := make([]byte, bufferSize)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if blob.Size >= 0 && s.n+int64(n) > blob.Size {
				return api.Errorf(api.CodeInvalid, "blob %s is longer than the %d bytes that it is to have", blob.Digest, blob.Size)
			}
			if s.n%roomStep+int64(n) >= roomStep {
				if err := s.room.Admit("receive layer", roomStep); err != nil {
					return err
				}
			}
			s.sum.Write(buf[:n])
			if err := s.put(buf[:n]); err != nil {
				return err
			}
			if err := failpoint.Pass("blob", "arrived"); err != nil {
				return err
			}
			s.mu.Lock()
			s.n += int64(n)
			s.more.Broadcast()
			s.mu.Unlock()
			progress(s.n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// put writes what arrives behind what is there; of nothing but zeros it makes a hole.
func (s *spool) put(p []byte) error {
	if isZero(p) {
		return s.file.Truncate(s.n + int64(len(p)))
	}
	_, err := s.file.WriteAt(p, s.n)
	return err
}

// reader reads the blob from its beginning, as far as it has arrived.
func (s *spool) reader() io.Reader { return &spoolReader{s: s} }

type spoolReader struct {
	s  *spool
	at int64
}

func (r *spoolReader) Read(p []byte) (int, error) {
	r.s.mu.Lock()
	for r.at == r.s.n && !r.s.done {
		r.s.more.Wait()
	}
	n, done, err := r.s.n, r.s.done, r.s.err
	r.s.mu.Unlock()
	if r.at == n && done {
		if err == nil {
			err = io.EOF
		}
		return 0, err
	}
	got, err := r.s.file.ReadAt(p[:min(int64(len(p)), n-r.at)], r.at)
	r.at += int64(got)
	return got, err
}

// wait returns when the blob is there, or will not be.
func (s *spool) wait() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.done {
		s.more.Wait()
	}
	return s.err
}
