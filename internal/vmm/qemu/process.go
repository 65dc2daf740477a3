package qemu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"banger/internal/linux"
	"banger/internal/vmm"
)

// process is a QEMU that is about to be started, with what it is handed.
type process struct {
	cmd      *exec.Cmd
	jail     linux.Jail
	logStart int64       // where in its log this run's messages begin
	opened   []io.Closer // ours, once it has its own
}

// newProcess opens all that the QEMU of a machine is to have, and takes over incoming,
// unless that is nil: from which it is to read its state. It has to be closed, also after
// an error.
func newProcess(m vmm.Machine, binary, accel string, tscKHz int64, incoming *os.File) (*process, error) {
	p := &process{cmd: exec.Command(binary, args(m, accel, tscKHz)...)}
	if incoming != nil {
		p.opened = append(p.opened, incoming)
	}
	p.cmd.Dir, p.cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}
	cgroup, err := p.open(m.Cgroup, os.O_RDONLY)
	if err != nil {
		return p, err
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true}
	if err := p.standard(m.Log); err != nil {
		return p, err
	}
	for _, name := range []string{agentSocket, qmpSocket} {
		if err := p.listen(filepath.Join(m.RunDir, name)); err != nil {
			return p, err
		}
	}
	if err := p.hand(m.Console, os.O_WRONLY|os.O_CREATE|os.O_APPEND); err != nil {
		return p, err
	}
	for _, d := range m.Disks {
		mode := os.O_RDWR
		if d.ReadOnly {
			mode = os.O_RDONLY
		}
		if err := p.hand(d.Path, mode); err != nil {
			return p, err
		}
	}
	if m.NIC != nil {
		tap, err := linux.OpenTap(m.NIC.Tap)
		if err != nil {
			return p, err
		}
		p.give(tap)
	}
	if incoming != nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, incoming)
		p.cmd.Args = append(p.cmd.Args, "-S", "-incoming", fmt.Sprintf("fd:%d", 2+len(p.cmd.ExtraFiles)))
	}
	p.jail, err = jail(m, binary, accel)
	return p, err
}

// start starts it.
func (p *process) start() error { return p.jail.Start(p.cmd) }

func (p *process) open(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	p.opened = append(p.opened, f)
	return f, nil
}

// standard opens the standard streams.
func (p *process) standard(log string) error {
	null, err := p.open(os.DevNull, os.O_RDONLY)
	if err != nil {
		return err
	}
	f, err := p.open(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = null, f, f
	p.logStart, err = f.Seek(0, io.SeekEnd)
	return err
}

// give hands it a file that is open, under the next number.
func (p *process) give(f *os.File) {
	p.opened = append(p.opened, f)
	p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, f)
}

func (p *process) hand(path string, flag int) error {
	f, err := p.open(path, flag)
	if err == nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, f)
	}
	return err
}

// listen hands it a socket at which it is to listen. That the daemon makes it leaves
// nobody else a say about what lies at the path, to which the daemon will connect.
func (p *process) listen(path string) error {
	l, err := linux.ListenUnix(path)
	if err != nil {
		return err
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err == nil {
		p.give(f)
	}
	return err
}

// close closes what it was handed, of which it has its own by now.
func (p *process) close() {
	for _, f := range p.opened {
		_ = f.Close() // nothing was written to it here
	}
}

// software are the trees in which programs, their libraries and their data lie, as far
// as a host has them.
var software = []string{"/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/nix/store", "/gnu/store"}

// jail is where the QEMU of a machine is to run.
func jail(m vmm.Machine, binary, accel string) (linux.Jail, error) {
	j := linux.Jail{UID: m.UID, Root: m.RunDir, Devices: []string{os.DevNull}} // on which it tries locks
	for _, path := range append(slices.Clone(software), beside(binary)...) {
		if _, err := os.Lstat(path); err == nil {
			j.See = append(j.See, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return j, err
		}
	}
	for _, path := range []string{m.Kernel, m.Initrd} {
		if err := vmm.Readable(path); err != nil {
			return j, err
		}
		j.See = append(j.See, path)
	}
	if accel == "kvm" {
		j.Devices = append(j.Devices, "/dev/kvm")
	}
	return j, nil
}

// beside are the files that a QEMU has that does not come from the distribution: those
// in its prefix, or in the directory in which it was built.
func beside(binary string) []string {
	if real, err := filepath.EvalSymlinks(binary); err == nil {
		binary = real
	}
	for _, tree := range software {
		if strings.HasPrefix(binary, tree+"/") {
			return nil
		}
	}
	dir := filepath.Dir(binary)
	prefix := filepath.Dir(dir)
	if dir == "/" {
		return []string{binary}
	}
	return []string{dir, filepath.Join(prefix, "lib"), filepath.Join(prefix, "lib64"), filepath.Join(prefix, "share/qemu"), filepath.Join(prefix, "share/seabios")}
}
