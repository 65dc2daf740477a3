package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/resource"
)

// checkThings has the ledger compared with the host.
func (c Config) checkThings(ctx context.Context) []api.Finding {
	findings, err := c.Ledger.Check(ctx)
	var out []api.Finding
	if err != nil {
		out = unknown(groupThings, "ledger", err)
	}
	names := map[string]string{}
	if c.VMs != nil {
		all, err := c.VMs(ctx)
		if err != nil {
			out = append(out, unknown(groupThings, "ledger", err)...)
		}
		for _, v := range all {
			names["vm/"+v.ID] = v.Name
		}
	}
	for _, f := range findings {
		out = append(out, c.thing(f, holder(f.Owner, names)))
	}
	if out == nil {
		return ok(groupThings, "ledger", "what was made on the host is there, and nothing else is that bears our mark")
	}
	return out
}

// holder says for people on whose behalf something is held.
func holder(owner string, names map[string]string) string {
	parts := strings.Split(owner, "/")
	if name := names[strings.Join(parts[:min(2, len(parts))], "/")]; name != "" {
		return fmt.Sprintf(" of VM %q", name)
	}
	if owner == "" {
		return ""
	}
	return " of " + owner
}

// thing says what a disagreement between ledger and host means.
func (c Config) thing(f resource.Finding, of string) api.Finding {
	what := f.Kind + " " + f.Name + of
	say := func(severity api.Severity, format string, meaning, advice string) api.Finding {
		out := found(groupThings, string(f.Problem), severity, format, what)
		if f.Detail != "" {
			out.Message += ": " + f.Detail
		}
		return advise(out, meaning, advice)
	}
	switch f.Problem {
	case resource.Stuck:
		out := say(api.SeverityWarning, "%s cannot be given back", "The host does not let go of it. It is tried again, after pauses that grow to ten minutes.",
			"End what uses it; banger doctor --fix tries at once.")
		out.Fixable = true
		return out
	case resource.Untracked:
		if f.Durable {
			return say(api.SeverityWarning, "%s is on the disk, and nothing is known of it", "It belongs to nothing. The daemon's next start removes it, so that there is time for a look.",
				"Take out of it what you need; then banger system stop, and any other command.")
		}
		out := say(api.SeverityWarning, "%s is on the host, and nothing is known of it", "It bears our mark and belongs to no VM.", "banger doctor --fix")
		out.Fixable = true
		return out
	case resource.Unfinished:
		return say(api.SeverityWarning, "%s was being made or unmade when a daemon ended", "The daemon's next start gives it back.", "Any command of root's starts the daemon, such as banger vm list.")
	case resource.Missing:
		return say(api.SeverityError, "%s is not there any more", "Somebody else has removed it. A VM that runs goes without.", "banger vm restart makes it anew; what was in a disk is lost, unless you have a copy to put in its place.")
	case resource.Taken:
		return say(api.SeverityError, "in the place of %s is something that is not banger's", "It is never touched. What was there is gone.", "Find out who made it, and remove or rename it.")
	}
	return say(api.SeverityWarning, "whether %s is there cannot be found out", notKnown, "")
}

// checkVMs looks at VMs that run with what an earlier version has started.
func (c Config) checkVMs(ctx context.Context, caller uint32) []api.Finding {
	all, err := c.VMs(ctx)
	if err != nil {
		return unknown(groupVMs, "agents", err)
	}
	var out []api.Finding
	seen, running := 0, 0
	for _, v := range all {
		if caller != rootUID && v.Owner != caller {
			continue
		}
		if seen++; v.State != api.VMRunning {
			continue
		}
		running++
		if slices.Contains(v.Pending, "agent") {
			f := found(groupVMs, "agents", api.SeverityWarning, "VM %q runs the agent of another version of banger", v.Name)
			out = append(out, advise(f, "They understand each other; what is new in the agent is not there.", "banger vm restart "+v.Name+", when it suits"))
		} else if v.Agent == "" {
			f := found(groupVMs, "agents", api.SeverityWarning, "the agent of VM %q does not answer", v.Name)
			out = append(out, advise(f, "Commands in it and copies have to wait.", "banger vm logs "+v.Name+" shows its console; banger vm restart "+v.Name))
		}
	}
	if out == nil && c.Served {
		return ok(groupVMs, "agents", "of %d VMs, %d run, with agents of this version", seen, running)
	}
	return out
}
