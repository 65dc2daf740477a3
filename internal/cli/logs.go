package cli

import (
	"context"
	"errors"
	"io"

	"banger/api"

	"github.com/spf13/cobra"
)

// watched is the error of what goes on until it is interrupted: that is no error to
// speak of, and only the exit status tells.
func watched(ctx context.Context, err error) error {
	if why, ok := errors.AsType[interrupted](context.Cause(ctx)); ok {
		return exitError(why.status())
	}
	return err
}

func logsCommand(d *deps) *cobra.Command {
	follow, tail := false, -1
	var c *cobra.Command
	c = command(d, "logs VM", "Show the console of a VM", "banger vm logs --follow --tail 10 api", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		q := api.ReadLogs{Follow: follow}
		if c.Flags().Changed("tail") {
			if tail < 0 {
				return api.Errorf(api.CodeInvalid, "logs: --tail %d: less than 0", tail).WithHint("leave it out for all lines")
			}
			q.Tail = &tail
		}
		r, err := d.client.Logs(ctx, args[0], q)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(d.stdout, r)
		return watched(ctx, err)
	})
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM is deleted, also while it is stopped")
	c.Flags().IntVarP(&tail, "tail", "n", -1, "show so many of the last `lines` only")
	completeFlag(c, "tail", cobra.NoFileCompletions)
	return c
}
