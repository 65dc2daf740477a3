package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"banger/internal/vmm"
)

// lastWords is how much of a console is told of a VM that has died, in bytes and in lines.
const (
	lastWords     = 300
	lastWordLines = 3
)

// death says why a VM runs no more whose VMM ended by itself: empty where the guest
// powered off. Cgroup is that of the VMM, which must not have been given back yet.
func death(exit vmm.Exit, cgroup, console string) string {
	oom := vmm.OutOfMemory(cgroup)
	switch {
	case oom != "":
		return withLastWords(oom, console)
	case !exit.Known && !poweredOff(console) && !rebooted(console):
		return withLastWords("the VMM ended, exit status unknown, adopted", console)
	case exit.Signal != "":
		return withLastWords("the VMM was killed by "+exit.Signal, console)
	case exit.Code != 0:
		return withLastWords(fmt.Sprintf("the VMM exited with status %d: %s", exit.Code, oneLine(exit.Log)), console)
	case rebooted(console):
		return "the guest rebooted, which stops the VM"
	}
	if why, ok := panicked(console); ok && !poweredOff(console) {
		return fmt.Sprintf("the guest's kernel panicked: %q", why)
	}
	return ""
}

// deathMeanwhile is death for a VM whose VMM ended while no daemon ran.
func (s *Service) deathMeanwhile(ctx context.Context, rec Record) string {
	held, err := s.ledger.Held(ctx, runOwnerOf(rec.ID))
	spec, restarted := s.restarted[rec.ID]
	oom := ""
	for _, ref := range held {
		switch {
		case err != nil:
		case ref.Kind == KindRunDir:
			err = json.Unmarshal(ref.Spec, &spec)
		case ref.Kind == KindCgroup:
			oom = vmm.OutOfMemory(s.cgroups.Path(ref.Name))
		}
	}
	if err != nil {
		s.log.Warn("find out how a VM ended", "vm", rec.Name, "err", err)
	}
	console := s.consoleTail(rec.ID, spec.Console)
	if poweredOff(console) {
		return ""
	}
	if rebooted(console) {
		return "the guest rebooted, which stops the VM"
	}
	if restarted {
		return withLastWords("the host was restarted while the VM ran", console)
	}
	return withLastWords(cmp.Or(oom, "the VMM ended while no daemon ran, exit status unknown"), console)
}

// withLastWords adds the last lines of a console, which the guest has written, as
// printable text.
func withLastWords(reason, console string) string {
	var lines []string
	for line := range strings.Lines(console[max(0, len(console)-lastWords):]) {
		line = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return -1
		}, line)
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return reason
	}
	return fmt.Sprintf("%s; the console ended with: %q", reason, strings.Join(lines[max(0, len(lines)-lastWordLines):], "; "))
}
