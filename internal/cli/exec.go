package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
	"banger/client"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// guestCommand is a command that is to run in a VM, as the flags describe it.
type guestCommand struct {
	interactive, tty bool
	env, envFiles    []string
	user, dir        string
}

// add gives c the flags. Standard input is always forwarded, so -i changes nothing;
// other tools have it.
func (g *guestCommand) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVarP(&g.interactive, "interactive", "i", false, "forward standard input (always done)")
	f.BoolVarP(&g.tty, "tty", "t", false, "give the command a terminal")
	f.StringArrayVarP(&g.env, "env", "e", nil, "`NAME=value` for the command's environment; NAME alone takes yours; repeatable")
	f.StringArrayVar(&g.envFiles, "env-file", nil, "`file` of lines as --env takes them; repeatable")
	f.StringVarP(&g.user, "user", "u", "", "`user` to run as, name or uid, with :group or :gid (default the image's, else root)")
	f.StringVarP(&g.dir, "workdir", "w", "", "`directory` to run in (default the image's, else the user's home)")
	none := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveNoFileComp)
	for _, name := range []string{"env", "user", "workdir"} {
		completeFlag(c, name, none)
	}
}

// options checks what was asked for, before anything is begun, and returns how to
// run args; without args a shell.
func (g *guestCommand) options(d *deps, verb string, args []string) (client.ExecOptions, error) {
	if g.tty && !d.tty {
		return client.ExecOptions{}, api.Errorf(api.CodeInvalid, "%s: -t needs a terminal as standard input and output", verb).
			WithHint("leave -t out")
	}
	if len(args) > 0 && args[0] == "" {
		return client.ExecOptions{}, api.Errorf(api.CodeInvalid, "%s: the command is empty", verb).
			WithHint("give a program, or no command for a shell")
	}
	if g.dir != "" && !strings.HasPrefix(g.dir, "/") {
		return client.ExecOptions{}, api.Errorf(api.CodeInvalid, "%s: --workdir %q: not an absolute path", verb, g.dir).
			WithHint("it is a directory in the VM, such as /root")
	}
	env, err := environment(g.env, g.envFiles)
	if err != nil {
		return client.ExecOptions{}, fmt.Errorf("%s: %w", verb, err)
	}
	tty := g.tty || d.tty && len(args) == 0
	return client.ExecOptions{Command: args, Env: env, User: g.user, Dir: g.dir, TTY: tty}, nil
}

func execCommand(d *deps) *cobra.Command {
	var g guestCommand
	c := command(d, "exec VM [-- COMMAND...]", "Run a command, or a shell, in a running VM", "banger vm exec --env CI=1 api -- make test",
		cobra.MinimumNArgs(1), func(ctx context.Context, args []string) error {
			opts, err := g.options(d, "exec", args[1:])
			if err != nil {
				return err
			}
			return d.exec(ctx, args[0], opts)
		})
	g.add(c)
	return c
}

// exec runs a command in a VM and ends with its exit status. From the moment when
// the command is sent, signals go to it.
func (d *deps) exec(ctx context.Context, ref string, opts client.ExecOptions) error {
	signals := make(chan string, 8)
	typed := &keyboard{Reader: d.stdin, hangUp: d.signals.hangUp, now: time.Now}
	opts.Stdin, opts.Stdout, opts.Stderr, opts.Signals, opts.Reconnect = d.stdin, d.stdout, d.stderr, signals, d.connect
	var resize chan api.WindowSize
	if opts.TTY {
		resize = make(chan api.WindowSize, 1)
		opts.Size, opts.Resize = windowSize(int(os.Stdin.Fd())), resize
		opts.Stdin, opts.Arrived = typed, typed.arrived
	}
	opts.Opened = func() error {
		if err := d.signals.serve(signals); err != nil {
			return err
		}
		if opts.TTY {
			return d.raw(resize)
		}
		return nil
	}
	status, err := d.client.Exec(ctx, ref, opts)
	d.signals.served()
	d.signals.giveBack()
	switch {
	case err != nil:
		return err
	case status.Signal != "":
		for number, name := range signalNames {
			if name == strings.TrimPrefix(status.Signal, "SIG") {
				return exitError(128 + int(number))
			}
		}
		return exitError(128 + status.Code)
	case status.Code != 0:
		return exitError(status.Code)
	}
	return nil
}

// signalNames are the signals whose death a shell would show as 128+n.
var signalNames = map[syscall.Signal]string{
	syscall.SIGHUP: "HUP", syscall.SIGINT: "INT", syscall.SIGQUIT: "QUIT", syscall.SIGILL: "ILL", syscall.SIGTRAP: "TRAP",
	syscall.SIGABRT: "ABRT", syscall.SIGBUS: "BUS", syscall.SIGFPE: "FPE", syscall.SIGKILL: "KILL", syscall.SIGUSR1: "USR1",
	syscall.SIGSEGV: "SEGV", syscall.SIGUSR2: "USR2", syscall.SIGPIPE: "PIPE", syscall.SIGALRM: "ALRM", syscall.SIGTERM: "TERM",
	syscall.SIGXCPU: "XCPU", syscall.SIGXFSZ: "XFSZ", syscall.SIGSYS: "SYS",
}

// raw puts the terminal into raw mode and follows its size, until the terminal is
// given back.
func (d *deps) raw(sizes chan<- api.WindowSize) error {
	fd := int(os.Stdin.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("set terminal to raw mode: %w", err)
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
				select {
				case sizes <- windowSize(fd):
				case <-stop:
					return
				}
			case <-stop:
				return
			}
		}
	}()
	d.signals.holdTerminal(func() {
		signal.Stop(changed)
		close(stop)
		_ = term.Restore(fd, state)
	})
	return nil
}

func windowSize(fd int) api.WindowSize {
	columns, rows, err := term.GetSize(fd)
	if err != nil || columns <= 0 || rows <= 0 {
		return api.WindowSize{Rows: 24, Cols: 80}
	}
	return api.WindowSize{Rows: uint16(rows), Cols: uint16(columns)}
}

// keyboard watches what is typed on a raw terminal, where Ctrl-C is a byte for the
// guest. When several do not arrive there, guest or daemon hang, and hangUp is called.
type keyboard struct {
	io.Reader
	hangUp func()
	now    func() time.Time

	mu      sync.Mutex
	read    int64 // bytes
	pending []keystroke
}

// keystroke is a Ctrl-C: where it is in the input, and when it was typed.
type keystroke struct {
	at   int64
	when time.Time
}

const (
	ctrlC = 3
	// A guest that is only slow gets this long before typed Ctrl-C count as lost.
	lostAfter = time.Second
)

func (k *keyboard) Read(b []byte) (int, error) {
	n, err := k.Reader.Read(b)
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, c := range b[:n] {
		if c == ctrlC {
			k.pending = append(k.pending, keystroke{k.read + int64(i) + 1, k.now()})
		}
	}
	k.read += int64(n)
	if len(k.pending) >= impatient && k.now().Sub(k.pending[0].when) >= lostAfter {
		k.hangUp()
	}
	return n, err
}

// arrived says that the first n bytes of the input are where they should be.
func (k *keyboard) arrived(n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending = slices.DeleteFunc(k.pending, func(s keystroke) bool { return s.at <= n })
}
