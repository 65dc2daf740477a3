package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"banger/internal/failpoint"

	"golang.org/x/sys/unix"
)

// CgroupRoot returns where the cgroup v2 hierarchy is mounted, alone or beside v1
// hierarchies; cgroups(7).
func CgroupRoot() (string, error) { return mountPoint("cgroup2") }

// CgroupPIDs returns the processes in a cgroup, without the kernel's own: KVM has a
// thread for each VM, which lives in the cgroup of the VMM.
func CgroupPIDs(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read cgroup %s: %w", dir, err)
		}
		if !IsKernelThread(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// IsKernelThread tells whether a process is one of the kernel's; PF_KTHREAD in the
// flags of proc_pid_stat(5).
func IsKernelThread(pid int) bool {
	const kthread = 0x00200000
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false // it is gone
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, ppid, pgrp, session, tty, tpgid, flags
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && flags&kthread != 0
}

// RemoveCgroup kills every process in a cgroup, waits for their end and removes it.
// Nil when there is no such cgroup.
func RemoveCgroup(ctx context.Context, dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil {
		err = failpoint.Pass("cgroup", "killed")
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", dir, err)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 5*time.Millisecond) { // somebody waits for each deletion
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("watch cgroup %s: %w", dir, err)
		}
		if bytes.Contains(events, []byte("populated 0")) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: processes remain: %w", dir, ctx.Err())
		case <-time.After(wait):
		}
	}
	if err := failpoint.Pass("cgroup", "emptied"); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// OpenPidfd returns a file that stands for the process pid, which need not be a
// child, and never for a later one of the same id; pidfd_open(2).
func OpenPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("process %d", pid)), nil
}

// AwaitEnd waits for the end of the process that pidfd stands for, or of ctx, which
// it may notice a quarter of a second late.
func AwaitEnd(ctx context.Context, pidfd *os.File) error {
	defer runtime.KeepAlive(pidfd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 250)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for %s: %w", pidfd.Name(), err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// signalPidfd sends the process that pidfd stands for a signal; pidfd_send_signal(2).
func signalPidfd(pidfd *os.File, signal unix.Signal) error {
	return whileOpen(pidfd, func(fd int) error { return unix.PidfdSendSignal(fd, signal, nil, 0) })
}

// whileOpen runs fn with a file's descriptor, which stays the file's until fn has returned,
// whoever closes it meanwhile: its number could become that of another process's. The
// error for a file that is closed already is os.ErrClosed.
func whileOpen(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// KillPidfd ends the process that pidfd stands for.
func KillPidfd(pidfd *os.File) error {
	if err := signalPidfd(pidfd, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", pidfd.Name(), err)
	}
	return nil
}

// Stop has all threads of a process stand still, and returns when they do; signal(7),
// SIGSTOP. A cgroup's freezer would do, but for the thread that KVM has in it.
func Stop(ctx context.Context, pidfd *os.File, pid int) error {
	if err := signalPidfd(pidfd, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop %s: %w", pidfd.Name(), err)
	}
	for {
		stopped, err := Stopped(pid)
		if err != nil || stopped {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop %s: %w", pidfd.Name(), ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// Continue has a process go on; SIGCONT.
func Continue(pidfd *os.File) error {
	if err := signalPidfd(pidfd, unix.SIGCONT); err != nil {
		return fmt.Errorf("continue %s: %w", pidfd.Name(), err)
	}
	return nil
}

// Stopped says whether all threads of a process stand still; proc_pid_stat(5).
func Stopped(pid int) (bool, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("look at process %d: it has ended", pid)
	}
	if err != nil {
		return false, err
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		if _, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')'):], []byte(") ")); !ok || !bytes.HasPrefix(rest, []byte("T")) {
			return false, nil
		}
	}
	return true, nil
}
