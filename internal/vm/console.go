package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/guest/wire"
)

// consoleMax is how much a console file may hold before its beginning is dropped,
// consoleKeep how much stays then, in bytes. While no daemon runs, the VMM's own
// limit on the size of its files is what bounds it: see vmm.Machine.
const (
	consoleMax  = 4 << 20
	consoleKeep = 1 << 20
	consoleTick = 5 * time.Second
)

func (s *Service) consolePath(id string) string { return filepath.Join(s.vmDir(id), "console.log") }

// dropHead cuts a file of more than most bytes down to about its last keep, from the
// beginning of a line on. The VMM, which appends, keeps the file open, so that it
// has to become shorter in place: were its beginning a hole instead, the offset would
// grow until it met the VMM's limit, and the console would fall silent. What is
// appended between the last read and the truncation is lost. It returns by how many
// bytes what is left is nearer to the beginning than it was.
func dropHead(path string, most, keep int64) (dropped int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size() <= most {
		return 0, err
	}
	tail, err := io.ReadAll(io.NewSectionReader(f, info.Size()-keep, keep))
	if err != nil {
		return 0, err
	}
	if _, line, found := bytes.Cut(tail, []byte("\n")); found && len(line) > 0 {
		tail = line
	}
	if _, err := f.WriteAt(tail, 0); err != nil {
		return 0, err
	}
	to := int64(len(tail))
	from := info.Size()
	for to < most { // what has come since
		n, err := io.Copy(io.NewOffsetWriter(f, to), io.NewSectionReader(f, from, most-to))
		if err != nil {
			return 0, err
		}
		if n == 0 {
			break
		}
		from, to = from+n, to+n
	}
	return from - to, f.Truncate(to)
}

// readTail returns the last n bytes of a file, at most.
func readTail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-n)
	text, err := io.ReadAll(io.NewSectionReader(f, from, n))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}

// consoleSize is how much a VM's console file holds now, in bytes.
func (s *Service) consoleSize(id string) int64 {
	info, err := os.Stat(s.consolePath(id))
	if err != nil {
		return 0
	}
	return info.Size()
}

// consoleTail returns the end of a VM's console, where the guest writes what it likes,
// of what came after the file had from bytes: the former runs are before that. It is
// empty for a VM that was never started.
func (s *Service) consoleTail(id string, from int64) string {
	most := int64(4 << 10)
	if size := s.consoleSize(id); size >= from { // else its beginning has been dropped since
		most = min(most, size-from)
	}
	text, err := readTail(s.consolePath(id), most)
	if err != nil {
		return ""
	}
	return string(text)
}

// agentSaid finds, at the end of a console, why the agent gave the guest up.
func agentSaid(console string) (reason string, ok bool) {
	i := strings.LastIndex(console, "\nbanger-agent: ")
	if i < 0 {
		return "", false
	}
	line, _, _ := strings.Cut(console[i+len("\nbanger-agent: "):], "\n")
	return strings.CutSuffix(strings.TrimSpace(line), "; powering off")
}

// awaitGivingUp returns when the agent has said that it gives the guest up, on a console of
// which the first bytes are of former runs, or when ctx ends: not every kernel can power off,
// as it does then.
func (s *Service) awaitGivingUp(ctx context.Context, id string, former int64) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if _, ok := agentSaid(s.consoleTail(id, former)); ok {
				return
			}
		}
	}
}

// rebooted tells, by what was said last on the console, a guest that wanted to start
// again from one that powered off: the VMM ends the same way. Where a machine cannot be
// switched off, the agent says that it is before it has it start again.
func rebooted(console string) bool {
	before, last := lastOf(console)
	return strings.HasPrefix(last, "reboot: Restarting system") && !saysOff(before)
}

// poweredOff tells a guest that did, by the same.
func poweredOff(console string) bool {
	before, last := lastOf(console)
	return strings.HasPrefix(last, "reboot: Power down") || strings.HasPrefix(last, "reboot: ") && saysOff(before)
}

// lastOf splits a console at the kernel's last words about the machine's end.
func lastOf(console string) (before, last string) {
	i := strings.LastIndex(console, "reboot: ")
	return console[:max(i, 0)], console[max(i, 0):]
}

// saysOff finds the agent's word as the last but one.
func saysOff(before string) bool {
	i := strings.LastIndex(before, "\n"+wire.OffWord)
	return i >= 0 && strings.Count(before[i+1:], "\n") <= 3
}

// panicked finds why the guest's kernel gave up.
func panicked(console string) (why string, ok bool) {
	_, why, ok = strings.Cut(console, "Kernel panic - not syncing: ")
	why, _, _ = strings.Cut(why, "\n")
	return strings.TrimSpace(why), ok
}
