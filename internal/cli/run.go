package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"banger/api"
	"banger/client"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// terminalFlags are -i and -t, as other tools have them. Standard input is always
// forwarded, so -i changes nothing.
type terminalFlags struct{ interactive, tty bool }

func (t *terminalFlags) add(c *cobra.Command) {
	c.Flags().BoolVarP(&t.interactive, "interactive", "i", false, "forward standard input (always done)")
	c.Flags().BoolVarP(&t.tty, "tty", "t", false, "give the command a terminal")
}

func runCommand(d *deps) *cobra.Command {
	var spec api.CreateVM
	var tf terminalFlags
	c := command(d, "run [-- COMMAND...]", "Create and start a VM, and run a command or a shell in it", "banger vm run --rm -- uname -a",
		cobra.ArbitraryArgs, func(ctx context.Context, args []string) error {
			if tf.tty && !d.tty {
				return api.Errorf(api.CodeInvalid, "run: -t needs a terminal as standard input and output")
			}
			return d.runVM(ctx, spec, tf.tty || d.tty && len(args) == 0, args)
		})
	c.PreRunE = func(c *cobra.Command, _ []string) error { return checkSpec(c) }
	c.Flags().BoolVar(&spec.Ephemeral, "rm", false, "delete the VM when the command has ended, or when this process is gone")
	tf.add(c)
	specFlags(c.Flags(), &spec)
	return c
}

func (d *deps) runVM(ctx context.Context, spec api.CreateVM, tty bool, args []string) (err error) {
	spec.Start = true
	vm, op, err := d.client.CreateVM(ctx, spec)
	if err != nil {
		return err
	}
	if spec.Ephemeral {
		lease, release := context.WithCancel(context.WithoutCancel(ctx))
		defer release()
		go d.hold(lease, vm.ID)
		defer func() {
			// The lease's end would do it too, some seconds later.
			op, derr := d.client.DeleteVM(lease, vm.ID, true)
			if derr == nil {
				_, derr = d.client.Wait(lease, op.ID, func(api.Progress) {})
			}
			if derr != nil && api.CodeOf(derr) != api.CodeNotFound {
				err = errors.Join(err, derr)
			}
		}()
	}
	if err := d.wait(ctx, op, nil); err != nil {
		return err
	}
	if len(args) == 0 && !tty {
		_, err := fmt.Fprintln(d.stdout, vm.Name)
		return err
	}
	return d.exec(ctx, vm.ID, tty, args)
}

// hold keeps the lease on a VM, also across a restart of the daemon.
func (d *deps) hold(ctx context.Context, ref string) {
	for ctx.Err() == nil {
		if err := d.client.Lease(ctx, ref); err != nil && api.CodeOf(err) == api.CodeNotFound {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func execCommand(d *deps) *cobra.Command {
	var tf terminalFlags
	c := command(d, "exec VM [-- COMMAND...]", "Run a command, or a shell, in a running VM", "banger vm exec api -- make test",
		cobra.MinimumNArgs(1), func(ctx context.Context, args []string) error {
			if tf.tty && !d.tty {
				return api.Errorf(api.CodeInvalid, "exec: -t needs a terminal as standard input and output")
			}
			return d.exec(ctx, args[0], tf.tty || d.tty && len(args) == 1, args[1:])
		})
	tf.add(c)
	return c
}

// exec runs a command in a VM and ends with its exit status. Signals go to it.
func (d *deps) exec(ctx context.Context, ref string, tty bool, args []string) error {
	ctx = context.WithoutCancel(ctx)
	caught := make(chan os.Signal, 8)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(caught)
	signals := make(chan string, 8)
	opts := client.ExecOptions{
		Command: args, TTY: tty, Stdin: d.stdin, Stdout: d.stdout, Stderr: d.stderr, Signals: signals, Reconnect: d.connect,
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-caught:
				if number, ok := s.(syscall.Signal); ok {
					select {
					case signals <- signalNames[number]:
					default:
					}
				}
			case <-done:
				return
			}
		}
	}()
	if tty {
		restore, resize, err := d.raw(&opts)
		if err != nil {
			return err
		}
		defer restore()
		opts.Resize = resize
	}
	status, err := d.client.Exec(ctx, ref, opts)
	if err != nil {
		return err
	}
	if status.Signal != "" {
		for number, name := range signalNames {
			if name == strings.TrimPrefix(status.Signal, "SIG") {
				return exitError(128 + int(number))
			}
		}
		return exitError(128 + status.Code)
	}
	if status.Code != 0 {
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

// raw puts the terminal into raw mode and follows its size.
func (d *deps) raw(opts *client.ExecOptions) (restore func(), resize <-chan api.WindowSize, err error) {
	fd := int(os.Stdin.Fd())
	opts.Size = windowSize(fd)
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	sizes := make(chan api.WindowSize, 1)
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
	return func() {
		signal.Stop(changed)
		close(stop)
		_ = term.Restore(fd, state)
	}, sizes, nil
}

func windowSize(fd int) api.WindowSize {
	columns, rows, err := term.GetSize(fd)
	if err != nil {
		return api.WindowSize{Rows: 24, Cols: 80}
	}
	return api.WindowSize{Rows: uint16(rows), Cols: uint16(columns)}
}
