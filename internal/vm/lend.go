package vm

import (
	"context"

	"banger/internal/program"
)

// Lend gives the guest of a running VM the programs of the host that its ssh sessions
// ask for, until ctx ends. Nobody waits for it: a session says for itself what it misses.
func (s *Service) Lend(ctx context.Context, caller uint32, ref string) {
	conn, err := s.channel(ctx, caller, ref)
	if err != nil {
		return // as who connects is told
	}
	if err := conn.Lend(ctx, program.Pack); err != nil {
		s.log.Info("lend programs to a guest", "vm", ref, "err", err)
	}
}
