package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/linux"
	"banger/internal/vmm"
)

// rootInMemory is what a chroot's file system may hold beside the program.
const rootInMemory = 1 << 20

// begin starts the Firecracker of a machine, which waits for requests then.
func (d *Driver) begin(m vmm.Machine, from string) (*instance, error) {
	i := d.newInstance(m, from)
	if err := i.check(); err != nil {
		return nil, err
	}
	if err := i.prepare(); err != nil {
		return nil, err
	}
	var opened []io.Closer // ours, once it has its own
	defer func() {
		for _, f := range opened {
			_ = f.Close() // nothing was written to it here
		}
	}()
	open := func(path string, flag int) (*os.File, error) {
		f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW, 0o600)
		if err == nil {
			opened = append(opened, f)
		}
		return f, err
	}
	cgroup, err := open(m.Cgroup, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	cmd := d.command(i.place)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true}
	if cmd.Stdin, err = open(os.DevNull, os.O_RDONLY); err != nil {
		return nil, err
	}
	// The guest's serial port is Firecracker's output.
	if cmd.Stdout, err = open(m.Console, os.O_WRONLY|os.O_CREATE|os.O_APPEND); err != nil {
		return nil, err
	}
	if cmd.Stderr, err = open(m.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND); err != nil {
		return nil, err
	}
	logs := i.logs()
	if from == "" {
		if err := i.agent.listen(); err != nil {
			return nil, err
		}
	} else {
		i.agent.set() // it answers as soon as the machine goes on
	}
	start := cmd.Start
	if i.jailed {
		start = func() error { return d.cell(i.place).Start(cmd) }
	}
	if err = start(); err == nil {
		i.Process, err = vmm.Began(cmd, logs...)
	}
	if err != nil {
		i.agent.close()
		return nil, err
	}
	return i, nil
}

// command is the command line of a Firecracker, by its jailer where it has one.
func (d *Driver) command(p place) *exec.Cmd {
	d.mu.Lock()
	defer d.mu.Unlock()
	args := []string{
		"--api-sock", p.socket(apiSocket), "--log-path", p.inside("log", p.log()), "--level", "Warning", "--show-level",
		"--metrics-path", p.inside("metrics", p.metrics()),
	}
	if p.pci() {
		args = append(args, "--enable-pci")
	}
	if !p.jailed {
		cmd := exec.Command(d.vmm.path, append([]string{"--id", p.name()}, args...)...)
		cmd.Dir, cmd.Env = p.sockets(), []string{}
		return cmd
	}
	uid := fmt.Sprint(p.m.UID)
	jail := []string{"--id", p.name(), "--exec-file", d.vmm.path, "--uid", uid, "--gid", uid, "--chroot-base-dir", filepath.Join(p.m.RunDir, jailDir), "--"}
	cmd := exec.Command(d.jailer.path, append(jail, args...)...)
	cmd.Dir, cmd.Env = "/", []string{}
	return cmd
}

// cell is where the jailer of a machine is started: the chroot that it will enter, with
// all that the VMM needs.
func (d *Driver) cell(p place) linux.Cell {
	d.mu.Lock()
	defer d.mu.Unlock()
	root := filepath.Join(filepath.Base(d.vmm.path), p.name(), "root") // the jailer's choice
	c := linux.Cell{UID: p.m.UID, Base: filepath.Join(p.m.RunDir, jailDir), Size: d.vmm.stat.Size() + rootInMemory}
	for _, f := range p.files() {
		f.Name = filepath.Join(root, f.Name)
		c.Files = append(c.Files, f)
	}
	return c
}

// name is what Firecracker calls the machine, which takes letters, digits and hyphens.
func (p place) name() string {
	return strings.Map(func(r rune) rune {
		if r < 128 && (r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
			return r
		}
		return '-'
	}, p.m.ID[:min(len(p.m.ID), 64)])
}

// awaitAPI waits until the API answers, and finds it to be the version that was found.
func (i *instance) awaitAPI(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 16*time.Millisecond) { // the jailer takes its time
		var v versionInfo
		err := i.api.get(ctx, "/version", &v)
		if err == nil {
			running, err := parseVersion(v.Version)
			if err == nil {
				i.features, err = running.features()
			}
			return err
		}
		if _, answered := errors.AsType[*fault](err); answered {
			return err
		}
		select {
		case <-i.Exited():
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// confine takes from the VMM what it does not need any more: the program, its devices but
// for KVM, and the right to make files. The guest has not run yet.
func (i *instance) confine() error {
	if err := os.Chown(i.sockets(), 0, 0); err != nil {
		return err
	}
	if err := os.Chmod(i.sockets(), 0o711); err != nil { // Firecracker connects to sockets in it
		return err
	}
	if !i.jailed {
		return nil
	}
	return linux.InMounts(i.Pidfd(), func() error {
		err := os.Remove("/" + i.program)
		for _, path := range []string{"/dev/net", "/dev/urandom", "/dev/userfaultfd"} {
			err = errors.Join(err, os.RemoveAll(path))
		}
		return errors.Join(err, linux.ProtectMount("/run"), linux.ProtectMount("/"))
	})
}
