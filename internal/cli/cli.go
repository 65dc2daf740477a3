// Package cli is the command line: one function a command, over package client. It
// never imports the daemon's code. A command is made by command (or list, show and
// verb, which are made of it) and added to its group; cli.go starts them and gives
// errors their exit status, output.go prints, signals.go says where signals go.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"banger/api"
	"banger/client"
	"banger/internal/config"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// cancelPatience is how long an interrupted command line waits until what it began
// is undone.
const cancelPatience = 30 * time.Second

// begunPatience is how long it waits for the answer to a request that begins
// something.
const begunPatience = 5 * time.Second

// deps is what commands work with; tests put their own in.
type deps struct {
	client  *client.Client
	paths   config.Paths
	version string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	tty     bool // stdin and stdout are a terminal
	signals *interrupts

	json, quiet bool // --json and --quiet, where the command has them
}

// exitError ends the CLI with the status of a command in a VM, silently.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// failures are errors that are all shown; the first gives the exit status.
type failures []error

func (f failures) Error() string   { return errors.Join(f...).Error() }
func (f failures) Unwrap() []error { return f }

// Main runs the command line and returns the exit status.
func Main(args []string, version string) int {
	paths := config.FromEnv()
	d := &deps{
		client: client.New(paths.Socket()), paths: paths, version: version,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		tty:     term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())),
		signals: newInterrupts(context.Background()),
	}
	d.signals.listen()
	status := make(chan int, 1)
	go func() { status <- run(d, args) }()
	select {
	case s := <-status:
		return s
	case why := <-d.signals.leave:
		d.signals.giveBack()
		return d.report(why)
	}
}

func run(d *deps, args []string) int {
	root := newRoot(d)
	root.SetArgs(args)
	err := root.ExecuteContext(d.signals.ctx)
	if err == nil {
		return 0
	}
	if status, ok := errors.AsType[exitError](err); ok {
		return int(status)
	}
	if why, ok := errors.AsType[interrupted](context.Cause(d.signals.ctx)); ok {
		if e, ok := errors.AsType[*api.Error](err); ok && errors.Is(e, why) {
			return d.report(e) // with its hint
		}
		return d.report(why)
	}
	return d.report(err)
}

// report shows an error, or several, and returns the exit status.
func (d *deps) report(err error) int {
	if all, ok := errors.AsType[failures](err); ok {
		status := d.report(all[0])
		for _, err := range all[1:] {
			d.report(err)
		}
		return status
	}
	if status, ok := errors.AsType[exitError](err); ok {
		return int(status)
	}
	e := api.AsError(err)
	status := e.Code.ExitStatus()
	if why, ok := errors.AsType[interrupted](err); ok {
		status = why.status()
	}
	fmt.Fprintln(d.stderr, "banger:", e.Message)
	if e.Hint != "" {
		fmt.Fprintln(d.stderr, "hint:", e.Hint)
	}
	return status
}

func newRoot(d *deps) *cobra.Command {
	root := &cobra.Command{
		Use:           "banger",
		Short:         "Disposable Linux machines that start in a blink",
		Example:       "  banger vm run --rm -- uname -a",
		Version:       d.version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usage(cobra.NoArgs),
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(d.stdin)
	root.SetOut(d.stdout)
	root.SetErr(d.stderr)
	root.SetFlagErrorFunc(badFlag)
	root.AddCommand(vmCommands(d), imageCommands(d), kernelCommands(d), systemCommands(d), doctorCommand(d))
	addCompletion(root)
	return root
}

// group is a command that only has others below it.
func group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(commands...)
	return c
}

// usage gives cobra's complaints about arguments their code.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return misused(cmd, err)
		}
		return nil
	}
}

// misused says what is wrong with a command line, and of which command.
func misused(cmd *cobra.Command, err error) *api.Error {
	if name, ok := strings.CutPrefix(cmd.CommandPath(), "banger "); ok {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return api.Errorf(api.CodeInvalid, "%w", err).WithHint("%s --help", cmd.CommandPath())
}

// badFlag is misused for a flag, in words instead of the names of Go's functions.
func badFlag(cmd *cobra.Command, err error) error {
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		cause := bad.Unwrap()
		if _, ok := errors.AsType[*strconv.NumError](cause); ok {
			kind := "a number that it can take"
			if bad.GetFlag().Value.Type() == "bool" {
				kind = "true or false"
			}
			cause = fmt.Errorf("%q is not %s", bad.GetValue(), kind)
		}
		err = fmt.Errorf("--%s: %w", bad.GetFlag().Name, cause)
	}
	e := misused(cmd, err)
	if cmd.Flags().Lookup("workdir") != nil { // it takes a command, whose flags these may have been
		e = e.WithHint("%s; a command and its flags come after --", e.Hint)
	}
	return e
}

// command is a command that needs the daemon, which is started if need be.
func command(d *deps, use, short, example string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	c := local(d, use, short, example, args, func(ctx context.Context, args []string) error {
		if err := d.connect(ctx); err != nil {
			return err
		}
		return run(ctx, args)
	})
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

// local is a command that does not start the daemon.
func local(d *deps, use, short, example string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: usage(args),
		RunE: func(c *cobra.Command, args []string) error {
			if d.json && d.quiet {
				return misused(c, errors.New("--json and --quiet exclude each other"))
			}
			return run(c.Context(), args)
		},
	}
}

func (d *deps) printJSON(v any) error {
	out := json.NewEncoder(d.stdout)
	out.SetIndent("", "  ")
	return out.Encode(v)
}

// outliving is ctx for a request that begins something: the end of ctx does not cut
// it off at once, since without the answer nobody could undo what it began.
func outliving(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(begunPatience, func() { cancel(context.Cause(ctx)) })
	})
	return out, func() { stop(); cancel(nil) }
}

// wait follows an operation to its end; when ctx ends it is cancelled.
func (d *deps) wait(ctx context.Context, op api.Operation, report api.Reporter) (api.Operation, error) {
	done, err := d.client.Wait(ctx, op.ID, report)
	if ctx.Err() == nil || err == nil {
		return done, err
	}
	patience, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelPatience)
	defer stop()
	if err := d.client.Cancel(patience, op.ID); err != nil {
		return api.Operation{}, context.Cause(ctx)
	}
	if done, err := d.client.Wait(patience, op.ID, report); err == nil {
		return done, nil // it was quicker
	}
	return api.Operation{}, context.Cause(ctx)
}
