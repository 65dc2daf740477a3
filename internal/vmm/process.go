package vmm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"banger/internal/linux"
)

// maxLog is how much of a VMM's last messages an Exit carries, in bytes.
const maxLog = 4 << 10

// maxFile is the most that a file which a VMM writes may grow to, its console above all,
// unless one of its disks, or its memory that a snapshot holds, is larger.
const maxFile = 1 << 30

// Log is a file with a VMM's messages, which begin at an offset.
type Log struct {
	Path string
	From int64
}

// Process is a VMM's process, for drivers: the parts of Instance that are the same for
// all of them.
type Process struct {
	pid     int
	pidfd   *os.File
	logs    []Log
	exited  chan struct{}
	exit    Exit
	off     atomic.Bool
	unwatch context.CancelFunc
}

// Began is the process of a command that was started.
func Began(cmd *exec.Cmd, logs ...Log) (*Process, error) {
	p := &Process{pid: cmd.Process.Pid, logs: logs, exited: make(chan struct{}), unwatch: func() {}}
	var err error
	if p.pidfd, err = linux.OpenPidfd(p.pid); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		err := cmd.Wait()
		exit := Exit{Known: true, Code: cmd.ProcessState.ExitCode()}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			exit.Signal = ws.Signal().String()
		} else if err != nil && exit.Code == 0 {
			exit.Code = -1
		}
		p.end(exit)
	}()
	return p, nil
}

// Found is the one process in a cgroup, that an earlier run of the daemon started. Alive
// says whether it is the VMM; it is asked when there is no doubt of which process.
func Found(m Machine, alive func() error, logs ...Log) (*Process, error) {
	pids, err := linux.CgroupPIDs(m.Cgroup)
	if err != nil {
		return nil, err
	}
	if len(pids) != 1 {
		return nil, fmt.Errorf("attach to machine %s: %d processes in its cgroup", m.ID, len(pids))
	}
	p := &Process{pid: pids[0], logs: logs, exited: make(chan struct{})}
	if p.pidfd, err = linux.OpenPidfd(p.pid); err == nil {
		var again []int
		if again, err = linux.CgroupPIDs(m.Cgroup); err == nil && !slices.Equal(again, pids) {
			err = errors.New("its process has ended")
		}
		if err == nil {
			err = alive()
		}
		if err != nil {
			p.pidfd.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("attach to machine %s: %w", m.ID, err)
	}
	watch, cancel := context.WithCancel(context.Background())
	p.unwatch = cancel
	go func() {
		if linux.AwaitEnd(watch, p.pidfd) == nil {
			p.end(Exit{})
		} else {
			p.pidfd.Close()
		}
	}()
	return p, nil
}

func (p *Process) end(exit Exit) {
	if exit.At = time.Now(); p.off.Load() {
		exit.Code, exit.Signal = 0, ""
	}
	var said []string
	for _, l := range p.logs {
		if text := l.last(); text != "" {
			said = append(said, text)
		}
	}
	exit.Log = strings.Join(said, "\n")
	exit.Log = exit.Log[max(0, len(exit.Log)-maxLog):]
	p.exit = exit
	p.pidfd.Close()
	close(p.exited)
}

// last returns the end of the messages, as printable text.
func (l Log) last() string {
	f, err := os.OpenFile(l.Path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(l.From, end-maxLog)
	text, _ := io.ReadAll(io.NewSectionReader(f, from, end-from)) // what can be read will do
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, string(text)))
}

// Abandon ends the process of a start that came to nothing with err, and completes that
// with how the process ended, where it did so by itself, and what it said last.
func (p *Process) Abandon(err error) error {
	select {
	case <-p.exited:
		err = fmt.Errorf("%w, by %s", err, cmp.Or(p.exit.Signal, fmt.Sprintf("status %d", p.exit.Code)))
	default:
		p.Kill()
	}
	if p.exit.Log == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.ReplaceAll(p.exit.Log, "\n", "; "))
}

// PID implements Instance.
func (p *Process) PID() int { return p.pid }

// Exited implements Instance.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Exit implements Instance.
func (p *Process) Exit() Exit { return p.exit }

// Close implements Instance.
func (p *Process) Close() error {
	p.unwatch()
	return nil
}

// Kill ends the process and waits for that.
func (p *Process) Kill() {
	_ = linux.KillPidfd(p.pidfd) // one that has ended
	<-p.exited
}

// SwitchOff is Kill for a machine that its guest has switched off: its end is none by a
// signal.
func (p *Process) SwitchOff() {
	p.off.Store(true)
	p.Kill()
}

// Pidfd stands for the process, until Exited is closed.
func (p *Process) Pidfd() *os.File { return p.pidfd }

// Bound limits each file that the VMM of a machine writes to 1 GiB or, where that is
// more, the size of its largest writable disk or of its memory.
func (p *Process) Bound(m Machine) error {
	limit := max(maxFile, m.Memory)
	for _, d := range m.Disks {
		info, err := os.Stat(d.Path)
		if err != nil {
			return fmt.Errorf("look at disk: %w", err)
		}
		if !d.ReadOnly {
			limit = max(limit, info.Size())
		}
	}
	return linux.LimitFileSize(p.pid, m.UID, uint64(limit))
}
