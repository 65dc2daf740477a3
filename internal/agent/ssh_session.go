package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/api"
	"banger/internal/linux"
)

const (
	maxSSHEnv     = 64
	maxSSHEnvSize = 4 << 10
	maxTerminal   = 64 // bytes in the name of a terminal's type
)

// sshSession is a session channel (RFC 4254, 6): one command, shell or subsystem.
type sshSession struct {
	conn *sshConn
	ch   ssh.Channel
	env  []string
	term string
	tty  bool
	size api.WindowSize

	begun  bool
	rest   func() // of a command that was begun: what comes after the answer to its request
	finish sync.WaitGroup

	mu     sync.Mutex
	pgid   int // 0 while no command runs
	resize func(api.WindowSize) error
}

func (c *sshConn) session(n ssh.NewChannel) {
	ch, requests, err := n.Accept()
	if err != nil {
		return
	}
	s := &sshSession{conn: c, ch: ch}
	for r := range requests {
		ok := s.request(r)
		_ = r.Reply(ok, nil)
		if rest := s.rest; rest != nil {
			s.rest = nil
			s.finish.Go(rest)
		}
	}
	// The channel is closed: a command that still runs has lost its terminal.
	s.signal("HUP")
	s.finish.Wait()
}

// request serves one request; true is the answer that it was done.
func (s *sshSession) request(r *ssh.Request) bool {
	switch r.Type {
	case "env":
		var v struct{ Name, Value string }
		if s.begun || ssh.Unmarshal(r.Payload, &v) != nil || !acceptedEnv(v.Name) ||
			len(s.env) >= maxSSHEnv || len(v.Value) > maxSSHEnvSize || strings.ContainsRune(v.Value, 0) {
			return false
		}
		s.env = append(s.env, v.Name+"="+v.Value)
		return true
	case "pty-req":
		var v struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}
		if s.begun || ssh.Unmarshal(r.Payload, &v) != nil || len(v.Term) > maxTerminal || strings.ContainsRune(v.Term, 0) {
			return false
		}
		s.tty, s.term, s.size = true, v.Term, windowSize(v.Rows, v.Cols)
		return true
	case "window-change":
		var v struct{ Cols, Rows, Width, Height uint32 }
		return ssh.Unmarshal(r.Payload, &v) == nil && s.setSize(windowSize(v.Rows, v.Cols))
	case "signal":
		var v struct{ Name string }
		return ssh.Unmarshal(r.Payload, &v) == nil && s.signal(v.Name)
	case "shell":
		return s.begin(func(u user) (*exec.Cmd, error) { return newCommand(s.spec(nil), u) }, s.tty)
	case "exec":
		var v struct{ Line string }
		if ssh.Unmarshal(r.Payload, &v) != nil {
			return false
		}
		return s.begin(func(u user) (*exec.Cmd, error) { return s.command(u, v.Line) }, s.tty)
	case "subsystem":
		var v struct{ Name string }
		if ssh.Unmarshal(r.Payload, &v) != nil || v.Name != "sftp" {
			return false
		}
		return s.begin(sftpCommand, false)
	}
	return false // forwarding of agents and displays among others
}

func windowSize(rows, cols uint32) api.WindowSize {
	return api.WindowSize{Rows: uint16(min(rows, 1<<16-1)), Cols: uint16(min(cols, 1<<16-1))}
}

func (s *sshSession) spec(command []string) api.ExecSpec {
	env := slices.Concat(s.conn.image.now().Env, s.env, []string{"SSH_CONNECTION=" + addressWords(s.conn.RemoteAddr()) + " " + addressWords(s.conn.LocalAddr())})
	if s.tty && s.term != "" {
		env = append(env, "TERM="+s.term)
	}
	return api.ExecSpec{Command: command, Env: env, TTY: s.tty, Size: s.size, Stdin: true}
}

// addressWords is an address as in SSH_CONNECTION; over the channel there is
// none, for which sshd has these words.
func addressWords(address net.Addr) string {
	if tcp, ok := address.(*net.TCPAddr); ok {
		return fmt.Sprint(tcp.IP, " ", tcp.Port)
	}
	return "UNKNOWN 65535"
}

// command is a command line as sshd runs it: by the user's shell. Where the image
// has none, a line of plain words is run without one.
func (s *sshSession) command(u user, line string) (*exec.Cmd, error) {
	spec, err := s.conn.lenders.withRsync(s.spec(nil), line)
	if err != nil {
		return nil, err
	}
	shell, err := loginShell(u)
	if err == nil {
		spec.Command = []string{shell, "-c", line}
		return newCommand(spec, u)
	}
	words, ok := plainWords(line)
	if !ok {
		return nil, fmt.Errorf("%w, which this command needs: it is more than plain words", err)
	}
	spec.Command = words
	return newCommand(spec, u)
}

// plainWords splits a line of which a shell would make nothing but words; in them, a
// backslash takes its meaning from any character.
func plainWords(line string) ([]string, bool) {
	var words []string
	var word []byte
	end := func() {
		if word != nil {
			words = append(words, string(word))
		}
		word = nil
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line) && line[i+1] != '\n':
			i++
			word = append(word, line[i])
		case strings.IndexByte("\"'\\$`|&;<>()*?[]{}~#!\n\x00", c) >= 0:
			return nil, false
		case c == ' ' || c == '\t':
			end()
		default:
			word = append(word, c)
		}
	}
	end()
	return words, len(words) > 0 && !strings.Contains(words[0], "=")
}

// begin starts the session's one command.
func (s *sshSession) begin(prepare func(user) (*exec.Cmd, error), tty bool) bool {
	if s.begun {
		return false
	}
	s.begun = true
	u, err := sshUser(s.conn.User())
	var cmd *exec.Cmd
	if err == nil {
		cmd, err = prepare(u)
	}
	var p *streams
	if err == nil {
		p, err = connect(cmd, api.ExecSpec{TTY: tty, Size: s.size, Stdin: true})
	}
	if err == nil {
		if tty {
			cmd.Env = append(cmd.Env, "SSH_TTY="+p.child[0].Name())
		}
		err = cmd.Start()
		p.closeChild()
		if err != nil {
			p.closeOurs()
		}
	}
	if err != nil {
		s.rest = func() { s.refuse(err) }
		return true
	}
	s.mu.Lock()
	s.pgid, s.resize = cmd.Process.Pid, p.resize
	s.mu.Unlock()
	s.rest = func() { s.run(cmd, p, tty) }
	return true
}

// refuse ends the session as a shell ends when it cannot run a command.
func (s *sshSession) refuse(err error) {
	code := uint32(126)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		code = 127
	}
	_, _ = fmt.Fprintf(s.ch.Stderr(), "banger: %v\r\n", err)
	s.exit("exit-status", struct{ Status uint32 }{code})
}

func (s *sshSession) exit(kind string, status any) {
	_ = s.ch.CloseWrite()
	_, _ = s.ch.SendRequest(kind, false, ssh.Marshal(status))
	_ = s.ch.Close()
}

// run passes input and output on until the command's end, and says how it ended.
func (s *sshSession) run(cmd *exec.Cmd, p *streams, tty bool) {
	ended := make(chan struct{})
	var outputs sync.WaitGroup
	for _, o := range p.outputs {
		var to io.Writer = s.ch
		if o.frame == api.FrameStderr {
			to = s.ch.Stderr()
		}
		outputs.Go(func() {
			pump(o.file, ended, func(b []byte) bool {
				_, err := to.Write(b)
				return err == nil
			})
			if !tty { // a command whose output nobody takes is to know that
				_ = o.file.Close()
			}
		})
	}
	go feedFrom(p.input, s.ch, tty)
	_ = linux.AwaitExit(cmd.Process.Pid)
	s.mu.Lock()
	s.pgid, s.resize = 0, nil
	s.mu.Unlock()
	_ = cmd.Wait() // the status is read below
	close(ended)
	for _, o := range p.outputs {
		_ = o.file.SetReadDeadline(time.Now().Add(outputGrace))
	}
	outputs.Wait()
	p.closeOurs()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		s.exit("exit-signal", struct {
			Name    string
			Core    bool
			Message string
			Lang    string
		}{Name: linux.SignalName(int(ws.Signal())), Core: ws.CoreDump()})
		return
	}
	s.exit("exit-status", struct{ Status uint32 }{uint32(cmd.ProcessState.ExitCode())})
}

// feedFrom passes input on to a command.
func feedFrom(w *os.File, from io.Reader, tty bool) {
	_, err := io.Copy(w, from)
	if !tty {
		_ = w.Close()
	} else if err == nil {
		_, _ = w.Write([]byte{4}) // ^D: the end of the input in canonical mode, see termios(3)
	}
}

// signal signals the command's process group.
func (s *sshSession) signal(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pgid != 0 && linux.Signal(s.pgid, name) == nil
}

func (s *sshSession) setSize(size api.WindowSize) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = size
	return s.resize == nil || s.resize(size) == nil
}
