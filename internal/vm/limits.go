package vm

import (
	"banger/api"
	"banger/internal/vmm"
)

// limits is what the VMM of a VM may take.
func (s *Service) limits(rec Record, engine vmm.Info) vmm.Limits {
	l := vmm.LimitsFor(rec.CPUs, rec.Memory, engine.Overhead)
	if rec.IO != (api.IO{}) {
		l.IO = new(s.ioLimits(rec))
	}
	return l
}

// ioLimits are those of the disk on which the directory of a VM lies, with its disks.
func (s *Service) ioLimits(rec Record) vmm.IO {
	return vmm.IO{
		Path: s.vmDir(rec.ID), ReadBPS: rec.IO.ReadBPS, WriteBPS: rec.IO.WriteBPS, ReadIOPS: rec.IO.ReadIOPS, WriteIOPS: rec.IO.WriteIOPS,
	}
}

// checkIO refuses limits that nothing would keep.
func (s *Service) checkIO(io api.IO) error {
	if io == (api.IO{}) {
		return nil
	}
	return s.cgroups.CheckIO(s.stateDir)
}

// limitIO gives a VM other limits of its disks, at once where it runs.
func (s *Service) limitIO(to Record, l *live) error {
	if err := s.cgroups.CheckIO(s.stateDir); err != nil || l == nil {
		if to.IO == (api.IO{}) {
			return nil // there is nothing to keep
		}
		return err
	}
	return s.ioLimits(to).Limit(l.cgroup)
}
