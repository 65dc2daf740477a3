package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"banger/api"

	"github.com/spf13/cobra"
)

// changeCommands are those that make a VM something else.
func changeCommands(d *deps) []*cobra.Command {
	var patience timeoutFlag
	restart := verb(d, "restart", "Stop VMs, if they run, and start them", func(ctx context.Context, ref string) (api.Operation, error) {
		return d.client.RestartVM(ctx, ref, patience.timeout)
	}, d.vmNow)
	patience.add(restart)
	reset := verb(d, "reset", "Give VMs a fresh root; their work disks (/root) stay", d.client.ResetVM, d.vmNow)
	restart.ValidArgsFunction, reset.ValidArgsFunction = d.vms, d.vms
	rename := command(d, "rename VM NAME", "Give a VM another name", "banger vm rename api web", cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			vm, err := d.change(ctx, args[0], api.SetVM{Name: &args[1]})
			if err != nil {
				return err
			}
			return d.changed(vm)
		})
	d.withJSON(rename)
	d.withQuiet(rename, "do not print the new name")
	promote := command(d, "promote VM IMAGE", "Make an image of a stopped VM's root", "banger vm promote api my-base", cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			asking, answered := outliving(ctx)
			op, err := d.client.PromoteVM(asking, args[0], args[1])
			answered()
			if _, err := d.operateLong(ctx, op, err); err != nil {
				return err
			}
			image, err := d.client.Image(context.WithoutCancel(ctx), args[1])
			return d.madeImage(image, err, nil)
		})
	d.withJSON(promote)
	d.withQuiet(promote, "show no progress, and of the image the name only")
	set := setCommand(d)
	for _, c := range []*cobra.Command{rename, promote, set} {
		c.ValidArgsFunction = first(d.vms)
	}
	return []*cobra.Command{restart, reset, rename, promote, set}
}

// vmms are the VMMs that one may ask for.
var vmms = []api.VMM{api.VMMAuto, api.VMMFirecracker, api.VMMQEMU}

func setCommand(d *deps) *cobra.Command {
	var cpus int
	var engine api.VMM
	var req api.SetVM
	var c *cobra.Command
	c = command(d, "set VM", "Change a VM: disks, their limits and NAT at once, CPUs, memory and VMM at its next start", "banger vm set api --memory 2G --disk 40G",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			if c.Flags().Changed("cpus") {
				req.CPUs = &cpus
			}
			if engine != "" {
				req.VMM = &engine
			}
			if req == (api.SetVM{}) {
				return api.Errorf(api.CodeInvalid, "set: nothing to change").WithHint("%s --help", c.CommandPath())
			}
			vm, err := d.change(ctx, args[0], req)
			if err != nil {
				return err
			}
			if len(vm.Pending) > 0 && !d.quiet {
				fmt.Fprintf(d.stderr, "%s: at the next start (banger vm restart %s)\n", strings.Join(vm.Pending, ", "), vm.Name)
			}
			return d.changed(vm)
		})
	d.withJSON(c)
	d.withQuiet(c, "do not print the name, nor what waits for the next start")
	f := c.Flags()
	f.IntVar(&cpus, "cpus", 0, "number of CPUs, from the next start on")
	f.Var(optionalText{&req.Kernel}, "kernel", "kernel to boot; only while it is stopped")
	f.Var(&optionalSize{&req.Memory}, "memory", "memory, e.g. 2G, from the next start on")
	f.Var(&optionalSize{&req.RootSize}, "root-size", "room for what the VM writes, e.g. 20G; grows only")
	f.Var(&optionalSize{&req.DiskSize}, "disk", "size of the work disk at /root, e.g. 40G; grows only")
	f.Var(&optionalOnOff{&req.NAT}, "nat", "on or off: whether the VM may reach what is beyond the host")
	f.Var(oneOf[api.VMM]{&engine, vmms}, "vmm", "which VMM runs it, from the next start on: firecracker, qemu, or auto")
	completeFlag(c, "vmm", cobra.FixedCompletions([]string{"auto", "firecracker", "qemu"}, cobra.ShellCompDirectiveNoFileComp))
	f.Var(&ioFlag{&req.IO}, "io", "what its disks may do by the second, e.g. read-bps=50M,write-iops=1000, or none; replaces all limits")
	for _, name := range []string{"cpus", "memory", "root-size", "disk", "io"} {
		completeFlag(c, name, cobra.NoFileCompletions)
	}
	completeFlag(c, "kernel", d.kernels)
	completeFlag(c, "nat", cobra.FixedCompletions([]string{"on", "off"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// change changes a VM and returns it as it is then.
func (d *deps) change(ctx context.Context, ref string, req api.SetVM) (api.VM, error) {
	vm, err := d.client.VM(ctx, ref)
	if err != nil {
		return api.VM{}, err
	}
	asking, answered := outliving(ctx)
	op, err := d.client.SetVM(asking, vm.ID, req)
	answered()
	if _, err := d.operate(ctx, op, err); err != nil {
		return api.VM{}, err
	}
	return d.client.VM(context.WithoutCancel(ctx), vm.ID)
}

// changed names a VM that was changed, or shows it with --json.
func (d *deps) changed(vm api.VM) error {
	if d.json {
		return d.printJSON(vm)
	}
	return d.done(vm.Name)
}

// oneOf is a flag that takes one of some words.
type oneOf[T ~string] struct {
	to *T
	of []T
}

func (o oneOf[T]) Set(s string) error {
	if !slices.Contains(o.of, T(s)) {
		return fmt.Errorf("%q is none of %s", s, strings.ReplaceAll(o.Type(), "|", ", "))
	}
	*o.to = T(s)
	return nil
}

func (o oneOf[T]) Type() string {
	var words []string
	for _, w := range o.of {
		words = append(words, string(w))
	}
	return strings.Join(words, "|")
}

func (o oneOf[T]) String() string {
	if o.to == nil {
		return ""
	}
	return string(*o.to)
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

// optionalOnOff is a flag that takes on or off and knows whether it was given.
type optionalOnOff struct{ value **bool }

func (o *optionalOnOff) Set(s string) error {
	var on onOff
	err := on.Set(s)
	*o.value = (*bool)(&on)
	return err
}
func (o *optionalOnOff) Type() string { return "on|off" }
func (o *optionalOnOff) String() string {
	if *o.value == nil {
		return ""
	}
	return (*onOff)(*o.value).String()
}
