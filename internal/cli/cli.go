// Package cli is the command line: one function a command, over package client. It
// never imports the daemon's code.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"banger/api"
	"banger/client"
	"banger/internal/config"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// deps is what commands work with; tests put their own in.
type deps struct {
	client  *client.Client
	paths   config.Paths
	version string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	tty     bool // stdin and stdout are a terminal
}

// exitError ends the CLI with the status of a command in a VM, silently.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main runs the command line and returns the exit status.
func Main(args []string, version string) int {
	paths := config.FromEnv()
	d := &deps{
		client: client.New(paths.Socket()), paths: paths, version: version,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		tty: term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())),
	}
	return run(context.Background(), d, args)
}

func run(ctx context.Context, d *deps, args []string) int {
	root := newRoot(d)
	root.SetArgs(args)
	root.SetIn(d.stdin)
	root.SetOut(d.stdout)
	root.SetErr(d.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if status, ok := errors.AsType[exitError](err); ok {
		return int(status)
	}
	e := api.AsError(err)
	if errors.Is(err, context.Canceled) {
		e = api.Errorf(api.CodeUnavailable, "interrupted")
	}
	fmt.Fprintln(d.stderr, "banger:", e.Message)
	if e.Hint != "" {
		fmt.Fprintln(d.stderr, "hint:", e.Hint)
	}
	return e.Code.ExitStatus()
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
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return api.Errorf(api.CodeInvalid, "%s: %w", cmd.CommandPath(), err).WithHint("%s --help", cmd.CommandPath())
	})
	root.AddCommand(vmCommands(d), imageCommands(d), kernelCommands(d), systemCommands(d))
	return root
}

// group is a command that only has others below it.
func group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: usage(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(commands...)
	return c
}

// usage gives cobra's complaints about arguments their code.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return api.Errorf(api.CodeInvalid, "%s: %w", cmd.CommandPath(), err).WithHint("%s --help", cmd.CommandPath())
		}
		return nil
	}
}

// command is a command that needs the daemon, which is started if need be.
func command(d *deps, use, short, example string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: usage(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			if err := d.connect(ctx); err != nil {
				return err
			}
			return run(ctx, args)
		},
	}
}

func (d *deps) printJSON(v any) error {
	out := json.NewEncoder(d.stdout)
	out.SetIndent("", "  ")
	return out.Encode(v)
}

// wait follows an operation to its end; when ctx ends it is cancelled.
func (d *deps) wait(ctx context.Context, op api.Operation, err error) error {
	if err != nil {
		return err
	}
	line := newProgress(d)
	defer line.clear()
	_, err = d.client.Wait(ctx, op.ID, line.report)
	if ctx.Err() != nil {
		patience := context.WithoutCancel(ctx)
		if cerr := d.client.Cancel(patience, op.ID); cerr == nil {
			_, _ = d.client.Wait(patience, op.ID, line.report)
		}
		return ctx.Err()
	}
	return err
}
