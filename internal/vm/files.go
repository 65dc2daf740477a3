package vm

import (
	"context"
	"io"

	"banger/api"
	"banger/internal/guest"
)

// channel returns the connection to the agent of a running VM that the caller may see.
func (s *Service) channel(ctx context.Context, caller uint32, ref string) (*guest.Conn, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return nil, err
	}
	l, err := o.current()
	if err != nil {
		return nil, err
	}
	return l.channel(ctx)
}

// Stat looks at a path in a running VM.
func (s *Service) Stat(ctx context.Context, caller uint32, ref, path string, follow bool) (api.File, error) {
	conn, err := s.channel(ctx, caller, ref)
	if err != nil {
		return api.File{}, err
	}
	return conn.Stat(ctx, path, follow)
}

// ReadFiles returns files of a running VM as a tar archive, which is the guest's.
// One that is not complete ends with an error.
func (s *Service) ReadFiles(ctx context.Context, caller uint32, ref string, q api.ReadFiles) (io.ReadCloser, error) {
	conn, err := s.channel(ctx, caller, ref)
	if err != nil {
		return nil, err
	}
	return conn.ReadFiles(ctx, q)
}

// WriteFiles extracts a tar archive in a running VM.
func (s *Service) WriteFiles(ctx context.Context, caller uint32, ref string, q api.WriteFiles, r io.Reader) error {
	conn, err := s.channel(ctx, caller, ref)
	if err != nil {
		return err
	}
	return conn.WriteFiles(ctx, q, r)
}
