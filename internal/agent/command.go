package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"

	"banger/api"
	"banger/internal/linux"
)

// consoleFile gets the output of commands that run by themselves; tests put another in
// its place.
var consoleFile = "/dev/console"

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// After the command's end, what its output pipes still hold is passed on.
	// Others that hold them open are not waited for.
	outputGrace = 200 * time.Millisecond
	eofPause    = 50 * time.Millisecond
	maxPipe     = 1 << 20 // the most that a pipe holds, see pipe(7)
)

// start starts the command of spec. A command that cannot be started is a session
// too: one with a message and exit status 127 or 126, as with a shell.
func (s *session) start(spec api.ExecSpec) error {
	u, err := findUser(spec.User)
	if err != nil {
		return err
	}
	put := func(o output) func([]byte) bool {
		return func(b []byte) bool { return s.put(api.Frame{Type: o.frame, Data: slices.Clone(b)}) }
	}
	if spec.Detach {
		spec.TTY, spec.Stdin = false, false
		console, err := os.OpenFile(consoleFile, os.O_WRONLY|syscall.O_NOCTTY, 0)
		if err != nil {
			return api.Errorf(api.CodeGuest, "exec: %w", err)
		}
		s.console = console
		put = func(output) func([]byte) bool {
			return func(b []byte) bool { _, err := console.Write(b); return err == nil }
		}
	}
	cmd, err := newCommand(spec, u)
	if err != nil {
		return s.refuse(err)
	}
	streams, err := connect(cmd, spec)
	if err != nil {
		return api.Errorf(api.CodeGuest, "exec %s: %w", cmd.Path, err)
	}
	err = cmd.Start()
	streams.closeChild()
	if err != nil {
		streams.closeOurs()
		return s.refuse(err)
	}
	s.pgid, s.resize = cmd.Process.Pid, streams.resize
	ended := make(chan struct{})
	var outputs sync.WaitGroup
	for _, o := range streams.outputs {
		outputs.Go(func() {
			pump(o.file, ended, put(o))
		})
	}
	go s.feed(streams.input, spec, ended)
	go s.wait(cmd, streams, ended, &outputs)
	return nil
}

// refuse makes the session that of a command that did not start; for one that nobody
// waits for it is an error.
func (s *session) refuse(err error) error {
	if s.console != nil {
		_ = s.console.Close()
		return api.Errorf(api.CodeInvalid, "exec: %w", err)
	}
	code := 126
	if isMissing(err) {
		code = 127
	}
	s.inClosed = true
	s.put(api.Frame{Type: api.FrameStderr, Data: []byte("banger: " + err.Error() + "\n")})
	s.put(api.JSONFrame(api.FrameExit, 0, api.ExecStatus{Code: code}))
	return nil
}

// isMissing says that a command did not start because there is none of the name.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound)
}

func newCommand(spec api.ExecSpec, u user) (*exec.Cmd, error) {
	env := []string{"PATH=" + defaultPath, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name}
	if spec.TTY {
		env = append(env, "TERM=xterm-256color")
	}
	env = append(env, spec.Env...)
	argv := spec.Command
	dir := spec.Dir
	if dir == "" {
		dir = homeOf(u)
	}
	if _, err := os.Stat(dir); err != nil { // else it would be the program that is said not to be there
		return nil, fmt.Errorf("enter its directory: %w", err)
	}
	cmd := &exec.Cmd{Env: env, Dir: dir, SysProcAttr: &syscall.SysProcAttr{}}
	if len(argv) == 0 {
		shell, err := loginShell(u)
		if err != nil {
			return nil, err
		}
		cmd.Path, argv = shell, []string{"-" + filepath.Base(shell)}
		if pathOf(spec.Env) != "" && pathOf(spec.Env) != defaultPath { // which a login shell would replace by that of /etc/profile
			argv[0] = filepath.Base(shell)
		}
	} else {
		path, err := lookPath(argv[0], dir, env)
		if err != nil {
			return nil, err
		}
		cmd.Path = path
	}
	cmd.Args = argv
	u.become(cmd)
	return cmd, nil
}

// become gives a command the user's privileges.
func (u user) become(cmd *exec.Cmd) {
	if u.uid != 0 || u.gid != 0 || len(u.groups) > 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
	}
}

// homeOf is the user's home, or / where the image has no such directory.
func homeOf(u user) string {
	if info, err := os.Stat(u.home); err == nil && info.IsDir() {
		return u.home
	}
	return "/"
}

func loginShell(u user) (string, error) {
	for _, shell := range []string{u.shell, "/bin/bash", "/bin/sh"} {
		if shell != "" && linux.Executable(shell) == nil {
			return shell, nil
		}
	}
	return "", fmt.Errorf("the image has no shell: %w", fs.ErrNotExist)
}

// lookPath finds a command as execvp(3) does, in the PATH that it is to have.
func lookPath(name, dir string, env []string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("empty command: %w", fs.ErrNotExist)
	}
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, check(path)
	}
	var denied error
	for _, d := range filepath.SplitList(pathOf(env)) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		err := check(filepath.Join(d, name))
		if err == nil {
			return filepath.Join(d, name), nil
		}
		if !errors.Is(err, fs.ErrNotExist) && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("%s: command not found: %w", name, exec.ErrNotFound)
}

// pathOf is the PATH of an environment, the last one that it has.
func pathOf(env []string) string {
	for _, e := range slices.Backward(env) {
		if list, ok := strings.CutPrefix(e, "PATH="); ok {
			return list
		}
	}
	return ""
}

func check(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s: is a directory", path)
	case linux.Executable(path) != nil:
		return fmt.Errorf("%s: %w", path, fs.ErrPermission)
	}
	return nil
}

// streams are the files between a session and its command.
type streams struct {
	child   []*os.File
	outputs []output
	input   *os.File                   // nil without input
	resize  func(api.WindowSize) error // nil without a terminal
}

type output struct {
	frame api.FrameType
	file  *os.File
}

func (p *streams) closeChild() { closeAll(p.child) }

func (p *streams) closeOurs() {
	for _, o := range p.outputs {
		_ = o.file.Close()
	}
	if p.input != nil {
		_ = p.input.Close()
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func connect(cmd *exec.Cmd, spec api.ExecSpec) (_ *streams, err error) {
	p := &streams{}
	defer func() {
		if err != nil {
			p.closeChild()
			p.closeOurs()
		}
	}()
	if spec.TTY {
		return p, connectTTY(cmd, spec, p)
	}
	cmd.SysProcAttr.Setpgid = true
	if spec.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return p, err
		}
		p.child, p.input, cmd.Stdin = append(p.child, r), w, r
	}
	for _, o := range []api.FrameType{api.FrameStdout, api.FrameStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return p, err
		}
		p.child, p.outputs = append(p.child, w), append(p.outputs, output{o, r})
		if o == api.FrameStdout {
			cmd.Stdout = w
		} else {
			cmd.Stderr = w
		}
	}
	return p, nil
}

func connectTTY(cmd *exec.Cmd, spec api.ExecSpec, p *streams) error {
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	p.child = append(p.child, slave)
	file, err := linux.PollableDup(master)
	_ = master.Close()
	if err != nil {
		return err
	}
	p.outputs = []output{{api.FrameStdout, file}}
	p.input = file
	p.resize = func(size api.WindowSize) error {
		return linux.SetWindowSize(file, size.Rows, size.Cols)
	}
	if spec.Size.Rows > 0 && spec.Size.Cols > 0 {
		if err := p.resize(spec.Size); err != nil {
			return err
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if cred := cmd.SysProcAttr.Credential; cred != nil {
		return slave.Chown(int(cred.Uid), int(cred.Gid))
	}
	return nil
}

// pump passes output on until its end, or until what was in it at the command's
// end has been read, or put returns false. What put is given is its for the call.
func pump(from *os.File, ended <-chan struct{}, put func([]byte) bool) {
	buf := make([]byte, 32<<10)
	for left := maxPipe; left > 0; {
		select {
		case <-ended:
			_ = from.SetReadDeadline(time.Now().Add(outputGrace))
		default:
			left = maxPipe
		}
		n, err := from.Read(buf)
		left -= n
		if n > 0 && !put(buf[:n]) {
			return
		}
		if err != nil {
			return
		}
	}
}

// feed passes input on to the command.
func (s *session) feed(w *os.File, spec api.ExecSpec, ended <-chan struct{}) {
	defer s.closeInput()
	if w == nil {
		return
	}
	if spec.TTY && !spec.Stdin {
		endInput(w, ended)
		return
	}
	if !spec.TTY {
		defer func() { _ = w.Close() }()
	}
	for {
		f, ok := s.nextInput()
		if !ok {
			return
		}
		if f.Type == api.FrameStdinEOF {
			s.passedOn()
			if spec.TTY {
				endInput(w, ended)
			}
			return
		}
		if _, err := w.Write(f.Data); err != nil {
			return
		}
		s.passedOn()
	}
}

// endInput has everybody who reads from a terminal read the end of its input, until
// ended is closed. One end-of-file character is the end for one reader only, and
// none at all after a line that is not complete; see termios(3), VEOF.
func endInput(master *os.File, ended <-chan struct{}) {
	tick := time.NewTicker(eofPause)
	defer tick.Stop()
	for {
		if eof, dry := linux.TerminalDry(master); dry {
			if _, err := master.Write([]byte{eof}); err != nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ended:
			return
		}
	}
}

// wait waits for the command's end, and puts the exit frame after its output.
func (s *session) wait(cmd *exec.Cmd, p *streams, ended chan struct{}, outputs *sync.WaitGroup) {
	_ = linux.AwaitExit(cmd.Process.Pid)
	s.mu.Lock()
	s.pgid = 0
	s.notify()
	s.mu.Unlock()
	_ = cmd.Wait() // the status is read below
	close(ended)
	for _, o := range p.outputs {
		_ = o.file.SetReadDeadline(time.Now().Add(outputGrace))
	}
	outputs.Wait()
	s.closeInput()
	s.mu.Lock()
	s.resize = nil
	s.mu.Unlock()
	p.closeOurs()
	status := api.ExecStatus{Code: cmd.ProcessState.ExitCode()}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status = api.ExecStatus{Signal: linux.SignalName(int(ws.Signal()))}
	}
	if s.console != nil {
		_, _ = fmt.Fprintf(s.console, "banger-agent: the command ended: %v\n", cmd.ProcessState)
		_ = s.console.Close()
	}
	s.put(api.JSONFrame(api.FrameExit, 0, status))
	s.mu.Lock()
	detached := s.attached == 0
	s.mu.Unlock()
	if detached {
		s.expire(true)
	}
}
