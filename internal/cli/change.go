package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"banger/api"

	"github.com/spf13/cobra"
)

// changeCommands are those that make a VM something else.
func changeCommands(d *deps) []*cobra.Command {
	operate := func(use, short, example string, args int, do func(context.Context, []string) (api.Operation, error)) *cobra.Command {
		c := command(d, use, short, example, cobra.ExactArgs(args), func(ctx context.Context, args []string) error {
			op, err := do(ctx, args)
			return d.wait(ctx, op, err)
		})
		c.ValidArgsFunction = d.completeVM
		return c
	}
	var timeout time.Duration
	restart := operate("restart VM", "Stop a VM, if it runs, and start it", "banger vm restart api", 1,
		func(ctx context.Context, args []string) (api.Operation, error) {
			return d.client.RestartVM(ctx, args[0], timeout)
		})
	restart.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long the guest is given to stop")
	return []*cobra.Command{
		restart,
		operate("reset VM", "Give a VM a fresh root; its work disk (/root) stays", "banger vm reset api", 1,
			func(ctx context.Context, args []string) (api.Operation, error) { return d.client.ResetVM(ctx, args[0]) }),
		operate("rename VM NAME", "Give a VM another name", "banger vm rename api web", 2,
			func(ctx context.Context, args []string) (api.Operation, error) {
				return d.client.SetVM(ctx, args[0], api.SetVM{Name: &args[1]})
			}),
		operate("promote VM IMAGE", "Make an image of a stopped VM's root", "banger vm promote api my-base", 2,
			func(ctx context.Context, args []string) (api.Operation, error) {
				return d.client.PromoteVM(ctx, args[0], args[1])
			}),
		setCommand(d),
	}
}

func setCommand(d *deps) *cobra.Command {
	var cpus int
	var memory, root, work bytesFlag
	var nat onOff
	var c *cobra.Command
	c = command(d, "set VM", "Change a VM: disks and NAT at once, CPUs and memory at its next start", "banger vm set api --memory 2G --disk 40G",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			req := api.SetVM{
				CPUs: given(c, "cpus", cpus), Memory: given(c, "memory", int64(memory)), RootSize: given(c, "root-size", int64(root)),
				DiskSize: given(c, "disk", int64(work)), NAT: given(c, "nat", bool(nat)),
			}
			if req == (api.SetVM{}) {
				return api.Errorf(api.CodeInvalid, "set: nothing to change").WithHint("%s --help", c.CommandPath())
			}
			op, err := d.client.SetVM(ctx, args[0], req)
			if err := d.wait(ctx, op, err); err != nil {
				return err
			}
			vm, err := d.client.VM(ctx, args[0])
			if err == nil && len(vm.Pending) > 0 {
				fmt.Fprintf(d.stderr, "%s: at the next start (banger vm restart %s)\n", strings.Join(vm.Pending, ", "), vm.Name)
			}
			return err
		})
	c.ValidArgsFunction = d.completeVM
	f := c.Flags()
	f.IntVar(&cpus, "cpus", 0, "number of CPUs, from the next start on")
	f.Var(&memory, "memory", "memory, e.g. 2G, from the next start on")
	f.Var(&root, "root-size", "room for what the VM writes, e.g. 20G; grows only")
	f.Var(&work, "disk", "size of the work disk at /root, e.g. 40G; grows only")
	f.Var(&nat, "nat", "on or off: whether the VM may reach what is beyond the host")
	return c
}

// given returns what a flag was given, nil where it was not.
func given[T any](c *cobra.Command, flag string, value T) *T {
	if !c.Flags().Changed(flag) {
		return nil
	}
	return &value
}

// onOff is a flag that takes on or off.
type onOff bool

func (o *onOff) Set(s string) error {
	if s != "on" && s != "off" {
		return fmt.Errorf("%q is neither on nor off", s)
	}
	*o = s == "on"
	return nil
}
func (o *onOff) Type() string { return "on|off" }
func (o *onOff) String() string {
	if *o {
		return "on"
	}
	return "off"
}
