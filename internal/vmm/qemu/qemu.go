// Package qemu drives QEMU's microvm machine, with KVM where it serves and TCG
// where it does not, so that banger works on any Linux machine.
package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// maxLog is how much of a VMM's last messages an Exit carries, in bytes.
const maxLog = 4 << 10

// ownMemory is what a QEMU needs for itself, in bytes. It was measured after the kernel had
// been loaded and while eight programs wrote to a disk: 43 MiB, and 55 MiB of the kernel's
// and initramfs's files, which are page cache.
const ownMemory = 128 << 20

// codeMemory is the most that QEMU takes for the code that it has translated, in bytes: an
// eighth of the host's memory, up to 1 GiB (tcg/region.c, tb-size).
func codeMemory() int64 {
	total, err := linux.MemTotal()
	if err != nil {
		return 1 << 30
	}
	return min(total/8, 1<<30)
}

// Driver implements vmm.Driver.
type Driver struct {
	binary string

	mu     sync.Mutex
	info   *vmm.Info
	tscKHz int64
}

// New returns a driver for the QEMU at path binary; an empty one is looked up in
// PATH.
func New(binary string) *Driver { return &Driver{binary: binary} }

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

// Check implements vmm.Driver.
func (d *Driver) Check(ctx context.Context) (vmm.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, err := exec.LookPath(cmp.Or(d.binary, "qemu-system-x86_64"))
	if err != nil {
		return vmm.Info{}, api.Errorf(api.CodeUnavailable, "look for QEMU: %w", err).
			WithHint("apt-get install qemu-system-x86, or name the program in the configuration (qemu.binary)")
	}
	if d.info != nil && d.info.Binary == path {
		return *d.info, nil
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return vmm.Info{}, api.Errorf(api.CodeUnavailable, "run %s --version: %w", path, err).WithHint("reinstall qemu-system-x86")
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "QEMU emulator version "), "\n")
	info := vmm.Info{Binary: path, Version: version, Accel: "kvm", Reason: "an ordinary guest runs at the speed of the hardware", Overhead: ownMemory}
	if err := linux.ProbeKVM(ctx); err != nil {
		if ctx.Err() != nil {
			return vmm.Info{}, err // which says nothing about KVM
		}
		info.Accel, info.Reason = "tcg", err.Error()
		info.Overhead += codeMemory()
		d.tscKHz = linux.TSCKHz()
	}
	d.info = &info
	return info, nil
}

// How long a VMM may take until its machine runs, or stands where its snapshot did.
const (
	startTimeout   = time.Minute     // on a host that has better things to do; one that fails ends at once
	restoreTimeout = 5 * time.Minute // it reads the guest's memory, from a disk
)

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	i, err := d.launch(ctx, m, nil, func(ctx context.Context, i *instance) error {
		return i.await(ctx, startTimeout, "running")
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// launch starts the QEMU of a machine, with the state that it reads from incoming unless
// that is nil, and waits for it by ready. It closes incoming.
func (d *Driver) launch(ctx context.Context, m vmm.Machine, incoming *os.File, ready func(context.Context, *instance) error) (*instance, error) {
	info, err := d.Check(ctx)
	if err != nil {
		if incoming != nil {
			incoming.Close()
		}
		return nil, err
	}
	p, err := newProcess(m, info.Binary, info.Accel, d.tscKHz, incoming)
	if err == nil {
		err = p.start()
	}
	p.close() // at once: who dials its sockets is to hear of its end
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", info.Binary, err)
	}
	cmd := p.cmd
	i := newInstance(m, cmd.Process.Pid)
	i.logStart = p.logStart
	go func() {
		err := cmd.Wait()
		exit := vmm.Exit{Known: true, Code: cmd.ProcessState.ExitCode()}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			exit.Signal = ws.Signal().String()
		} else if err != nil && exit.Code == 0 {
			exit.Code = -1
		}
		i.end(exit)
	}()
	i.kill = func() {
		cmd.Process.Kill()
		<-i.exited
	}
	err = failpoint.Pass("qemu", "forked")
	if err == nil {
		err = i.bound()
	}
	if err == nil {
		err = ready(ctx, i)
	}
	if err != nil {
		select {
		case <-i.exited:
			err = fmt.Errorf("%w, by %s", err, cmp.Or(i.exit.Signal, fmt.Sprintf("status %d", i.exit.Code)))
		default:
			i.kill()
		}
		if said := strings.Join(strings.Split(i.exit.Log, "\n"), "; "); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return nil, api.Errorf(api.CodeUnavailable, "start %s: %w", info.Binary, err)
	}
	return i, nil
}

// Attach implements vmm.Driver.
func (d *Driver) Attach(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	pids, err := linux.CgroupPIDs(m.Cgroup)
	if err != nil {
		return nil, err
	}
	if len(pids) != 1 {
		return nil, fmt.Errorf("attach to machine %s: %d processes in its cgroup", m.ID, len(pids))
	}
	i := newInstance(m, pids[0])
	pidfd, err := linux.OpenPidfd(i.pid)
	if err != nil {
		return nil, fmt.Errorf("attach to machine %s: %w", m.ID, err)
	}
	if err := i.inPlace(ctx, m.Cgroup); err != nil {
		pidfd.Close()
		return nil, fmt.Errorf("attach to machine %s: %w", m.ID, err)
	}
	watch, cancel := context.WithCancel(context.Background())
	i.unwatch = cancel
	go func() {
		defer pidfd.Close()
		if linux.AwaitEnd(watch, pidfd) == nil {
			i.end(vmm.Exit{})
		}
	}()
	return i, nil
}

// inPlace finds the process, of which there is a pidfd now, still in its cgroup, and
// its monitor's socket open. It does not wait for an answer: a machine that stands
// still for a while, because the host is busy or somebody has stopped it, lives.
func (i *instance) inPlace(ctx context.Context, cgroup string) error {
	pids, err := linux.CgroupPIDs(cgroup)
	if err != nil || !slices.Equal(pids, []int{i.pid}) {
		return errors.Join(errors.New("its process has ended"), err)
	}
	conn, err := linux.DialUnix(ctx, filepath.Join(i.runDir, qmpSocket))
	if errors.Is(err, syscall.EAGAIN) { // others wait for it to accept them; unix(7)
		return nil
	}
	if err == nil {
		err = conn.Close()
	}
	return err
}

// instance implements vmm.Instance.
type instance struct {
	pid      int
	uid      uint32
	memory   int64 // bytes
	runDir   string
	log      string
	disks    []vmm.Disk
	logStart int64 // where in the log this run's messages begin, if it is known
	exited   chan struct{}
	exit     vmm.Exit
	unwatch  context.CancelFunc
	kill     func() // ends one that this daemon started, and waits
}

func newInstance(m vmm.Machine, pid int) *instance {
	return &instance{pid: pid, uid: m.UID, memory: m.Memory, runDir: m.RunDir, log: m.Log, disks: m.Disks, exited: make(chan struct{}), unwatch: func() {}}
}

func (i *instance) end(exit vmm.Exit) {
	exit.At = time.Now()
	exit.Log = i.lastWords()
	i.exit = exit
	close(i.exited)
}

// lastWords returns the end of this run's messages, as printable text.
func (i *instance) lastWords() string {
	f, err := os.Open(i.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(i.logStart, end-maxLog)
	text, _ := io.ReadAll(io.NewSectionReader(f, from, end-from)) // what can be read will do
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, string(text)))
}

// maxFile is the most that a file which the VMM writes may grow to, its console
// above all, unless one of its disks is larger.
const maxFile = 1 << 30

// bound limits each file that the VMM writes to maxFile or, where that is more, the
// size of its largest writable disk.
func (i *instance) bound() error {
	limit := int64(maxFile)
	for _, d := range i.disks {
		info, err := os.Stat(d.Path)
		if err != nil {
			return fmt.Errorf("look at disk: %w", err)
		}
		if !d.ReadOnly {
			limit = max(limit, info.Size())
		}
	}
	return linux.LimitFileSize(i.pid, i.uid, uint64(limit))
}

// await waits until QEMU says that the machine is in a state (RunState of its QMP).
func (i *instance) await(ctx context.Context, timeout time.Duration, state string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		answer, err := i.monitor(ctx, command{Execute: "query-status"})
		var is struct{ Status string }
		if err == nil && json.Unmarshal(answer, &is) == nil && is.Status == state {
			return nil
		}
		select {
		case <-i.exited:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (i *instance) monitor(ctx context.Context, commands ...command) (json.RawMessage, error) {
	conn, err := linux.DialUnix(ctx, filepath.Join(i.runDir, qmpSocket))
	if err != nil {
		return nil, err
	}
	return qmp(ctx, conn, commands...)
}

// PID implements vmm.Instance.
func (i *instance) PID() int { return i.pid }

// Dial implements vmm.Instance.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) {
	return linux.DialUnix(ctx, filepath.Join(i.runDir, agentSocket))
}

// Channel implements vmm.Instance.
func (i *instance) Channel() vmm.Channel { return vmm.ChannelSerial }

// PowerButton implements vmm.Instance.
func (i *instance) PowerButton(ctx context.Context) error {
	_, err := i.monitor(ctx, command{Execute: "system_powerdown"})
	return err
}

// ResizeDisk implements vmm.Instance.
func (i *instance) ResizeDisk(ctx context.Context, disk int, size int64) error {
	if err := i.bound(); err != nil {
		return fmt.Errorf("resize disk %d: %w", disk, err)
	}
	_, err := i.monitor(ctx, command{Execute: "block_resize", Arguments: map[string]any{"device": fmt.Sprintf("d%d", disk), "size": size}})
	if err != nil {
		return fmt.Errorf("resize disk %d: %w", disk, err)
	}
	return nil
}

// Exited implements vmm.Instance.
func (i *instance) Exited() <-chan struct{} { return i.exited }

// Exit implements vmm.Instance.
func (i *instance) Exit() vmm.Exit { return i.exit }

// Close implements vmm.Instance.
func (i *instance) Close() error {
	i.unwatch()
	return nil
}
