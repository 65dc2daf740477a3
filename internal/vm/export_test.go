package vm

import "time"

// SetLeaseGrace changes how long ephemeral VMs live without a holder, before Recover.
func (s *Service) SetLeaseGrace(d time.Duration) { s.leaseGrace = d }
