package vm

import (
	"context"
	"strings"

	"banger/api"
	"banger/internal/network"
	"banger/internal/resource"
)

// lacking says what of a VM that runs is not there any more, because somebody has taken
// it away; empty where all is there. None of it can be put back under a VMM that has it
// open.
func (s *Service) lacking(ctx context.Context, o *owner) string {
	found, err := s.ledger.CheckOwner(ctx, runOwnerOf(o.id))
	if err != nil {
		s.log.Warn("look whether a VM has all that it needs", "vm", o.name(), "err", err)
		return ""
	}
	var texts []string
	for _, f := range found {
		what, means := f.Kind+" "+f.Name, ""
		switch f.Kind {
		case network.KindTap:
			what, means = "network device "+f.Name, ", so that it has no network"
		case KindRunDir:
			what, means = "directory of sockets "+s.runDirs.Path(f.Name), ", so that the next daemon could not reach it and would end it"
		}
		switch f.Problem {
		case resource.Missing:
			texts = append(texts, "somebody has removed its "+what+means)
		case resource.Taken:
			texts = append(texts, "somebody has put something else in the place of its "+what+means)
		}
	}
	if len(texts) == 0 {
		return ""
	}
	return strings.Join(append(texts, "banger vm restart "+o.name()+" mends it"), "; ")
}

// shown is s.view, and what of a VM that runs is missing.
func (s *Service) shown(ctx context.Context, o *owner) api.VM {
	v := s.view(ctx, o)
	if v.State == api.VMRunning || v.State == api.VMPaused {
		if text := s.lacking(ctx, o); text != "" {
			v.LastError = text
		}
	}
	return v
}
