package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"banger/api"
	"banger/client"

	"github.com/spf13/cobra"
)

func runCommand(d *deps) *cobra.Command {
	var spec api.CreateVM
	var g guestCommand
	var p provision
	var detach bool
	c := command(d, "run [-- COMMAND...]", "Create and start a VM, and run a command in it, or a shell, or its image's command", "banger vm run --rm -- uname -a",
		cobra.ArbitraryArgs, func(ctx context.Context, args []string) error {
			opts, err := g.options(d, "run", args)
			if err != nil {
				return err
			}
			if detach {
				opts.Detach, opts.TTY = true, false
			}
			if err := d.checkRun(spec, opts); err != nil {
				return err
			}
			return d.runVM(ctx, spec, p, opts)
		})
	c.PreRunE = func(c *cobra.Command, _ []string) error { return errors.Join(checkSpec(c), p.check()) }
	c.Flags().BoolVarP(&detach, "detach", "d", false, "run the command, or the image's, in the background; its output goes to the console (banger vm logs)")
	c.Flags().BoolVar(&spec.Ephemeral, "rm", false, "delete the VM when the command has ended, or when this process is gone")
	g.add(c)
	p.add(c)
	d.specFlags(c, &spec)
	d.withJSON(c)
	d.withQuiet(c, "show no progress, and of a VM that is left running the id only")
	return c
}

// checkRun refuses what makes no sense together.
func (d *deps) checkRun(spec api.CreateVM, opts client.ExecOptions) error {
	bad := func(hint, text string) error {
		return api.Errorf(api.CodeInvalid, "run: %s", text).WithHint("%s", hint)
	}
	switch {
	case d.json && !opts.Detach && (len(opts.Command) > 0 || opts.TTY):
		return bad("leave the command or --json out, or add --detach", "--json shows the VM, not the output of a command")
	case opts.Detach && spec.Ephemeral:
		return bad("leave out one of them", "--rm deletes the VM when this process is gone, --detach leaves it running")
	}
	return nil
}

// runVM makes and starts a VM, and runs what opts say in it: a command, else a shell on
// a terminal, else the image's command. Where there is none of them, or nobody waits for
// it, it says what was made.
func (d *deps) runVM(ctx context.Context, spec api.CreateVM, p provision, opts client.ExecOptions) (err error) {
	runs := len(opts.Command) > 0 || opts.TTY
	spec.Start = runs || !spec.Ephemeral // else its image is to be known first
	vm, op, err := d.create(ctx, spec, p)
	if err != nil {
		return err
	}
	if spec.Ephemeral {
		lease, release := context.WithCancel(context.WithoutCancel(ctx))
		defer release()
		go d.hold(lease, vm.ID)
		defer func() {
			if derr := d.drop(lease, vm.ID); derr != nil {
				err = join(err, derr)
			}
		}()
	}
	if !runs && len(vm.Command) > 0 && (opts.Detach || !d.json) {
		opts.Image, runs = true, true
	}
	if !runs && spec.Ephemeral {
		return api.Errorf(api.CodeInvalid, "run: --rm without a command deletes the VM at once, and its image has none of its own").
			WithHint("give a command, or leave --rm out")
	}
	if _, err := d.operate(ctx, op, nil); err != nil {
		return err
	}
	if !spec.Start {
		asking, answered := outliving(ctx)
		op, err := d.client.StartVM(asking, vm.ID)
		answered()
		if _, err := d.operate(ctx, op, err); err != nil {
			return err
		}
	}
	if opts.Detach && runs {
		if _, err := d.client.Exec(ctx, vm.ID, opts); err != nil {
			return api.About(err, "run in VM %q", vm.Name)
		}
	}
	if !runs || opts.Detach {
		if vm, err = d.client.VM(context.WithoutCancel(ctx), vm.ID); err != nil {
			return err
		}
		return d.made(vm, vm.ID, vm.Name)
	}
	err = d.exec(ctx, vm.ID, opts)
	if why, ok := errors.AsType[interrupted](context.Cause(ctx)); ok && err != nil && !spec.Ephemeral {
		return api.Errorf(api.CodeUnavailable, "%w", why).WithHint("the VM runs on; banger vm delete --force %s ends it", vm.Name)
	}
	return err
}

// join is both errors, each shown for itself; either may be nil.
func join(first, second error) error {
	if first == nil {
		return second
	}
	return failures{first, second}
}

// drop deletes an ephemeral VM. The lease's end would do it too, some seconds later.
func (d *deps) drop(ctx context.Context, id string) error {
	op, err := d.client.DeleteVM(ctx, id, true)
	if err == nil {
		_, err = d.client.Wait(ctx, op.ID, nil)
	}
	if api.CodeOf(err) == api.CodeNotFound {
		return nil // it did not start, and was removed
	}
	return err
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

func createCommand(d *deps) *cobra.Command {
	var spec api.CreateVM
	var p provision
	c := command(d, "create", "Create a VM without starting it", "banger vm create --name api --memory 1G", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			vm, op, err := d.create(ctx, spec, p)
			if err != nil {
				return err
			}
			if _, err := d.operate(ctx, op, nil); err != nil {
				return err
			}
			return d.made(vm, vm.ID, vm.Name)
		})
	c.PreRunE = func(c *cobra.Command, _ []string) error { return errors.Join(checkSpec(c), p.check()) }
	p.add(c)
	d.specFlags(c, &spec)
	d.withJSON(c)
	d.withQuiet(c, "show no progress, and of the VM the id only")
	return c
}

// specFlags are the flags that describe a VM.
func (d *deps) specFlags(c *cobra.Command, spec *api.CreateVM) {
	f := c.Flags()
	f.StringVar(&spec.Name, "name", "", "name of the VM (default a random one)")
	f.StringVar(&spec.Image, "image", "", "image to make it from (default debian, or as configured)")
	f.StringVar(&spec.Kernel, "kernel", "", "kernel to boot (default the one that banger kernel list marks)")
	f.IntVar(&spec.CPUs, "cpus", 0, "number of CPUs (default 1, or as configured)")
	f.Var((*bytesFlag)(&spec.Memory), "memory", "memory, e.g. 512M (default 512M, or as configured)")
	f.Var(&optionalSize{&spec.DiskSize}, "disk", "size of the work disk at /root, which outlives the root, 0 for none (default 10G, or as configured)")
	f.Var((*bytesFlag)(&spec.RootSize), "root-size", "room for what the VM writes, e.g. 10G (default 10G, or as configured)")
	f.Var(oneOf[api.RootDisk]{&spec.RootDisk, []api.RootDisk{api.RootDiskOverlay, api.RootDiskSnapshot}}, "root-disk", "how its root is made: overlay or dm-snapshot (default overlay, or as configured)")
	f.Var(oneOf[api.Network]{&spec.Network, []api.Network{api.NetworkBridge, api.NetworkNone}}, "net", "how it is on the network: bridge or none (default bridge, or as configured)")
	f.Var(&optionalOnOff{&spec.NAT}, "nat", "on or off: whether it may reach what is beyond the host (default on, or as configured)")
	f.Var(&ioFlag{&spec.IO}, "io", "what its disks may do by the second, e.g. read-bps=50M,write-iops=1000, or none (default none, or as configured)")
	f.BoolVar(&spec.Init, "init", false, "boot the image's own init (systemd, openrc) as process 1")
	none := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveNoFileComp)
	for _, name := range []string{"name", "cpus", "memory", "disk", "root-size", "io"} {
		completeFlag(c, name, none)
	}
	completeFlag(c, "net", cobra.FixedCompletions([]string{"bridge", "none"}, cobra.ShellCompDirectiveNoFileComp))
	f.Var(oneOf[api.VMM]{&spec.VMM, vmms}, "vmm", "which VMM runs it: firecracker, qemu, or auto, the best one that serves (default auto, or as configured)")
	completeFlag(c, "vmm", cobra.FixedCompletions([]string{"auto", "firecracker", "qemu"}, cobra.ShellCompDirectiveNoFileComp))
	completeFlag(c, "root-disk", cobra.FixedCompletions([]string{"overlay", "dm-snapshot"}, cobra.ShellCompDirectiveNoFileComp))
	completeFlag(c, "nat", cobra.FixedCompletions([]string{"on", "off"}, cobra.ShellCompDirectiveNoFileComp))
	completeFlag(c, "image", d.images)
	completeFlag(c, "kernel", d.kernels)
}

// checkSpec refuses what the API takes for "the default" where it was given.
func checkSpec(c *cobra.Command) error {
	for _, name := range []string{"name", "image", "kernel"} {
		if f := c.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
			return api.Errorf(api.CodeInvalid, "create VM: --%s is empty", name).WithHint("leave it out for the default")
		}
	}
	if f := c.Flags().Lookup("cpus"); f.Changed && f.Value.String() == "0" {
		return api.Errorf(api.CodeInvalid, "create VM: 0 CPUs").WithHint("--cpus takes 1 or more")
	}
	return nil
}

// The ways to deal with what is missing.
const (
	pullAlways  = "always"
	pullMissing = "missing"
	pullNever   = "never"
)

// provision says whether a missing kernel or image is got.
type provision struct{ pull string }

func (p *provision) add(c *cobra.Command) {
	c.Flags().StringVar(&p.pull, "pull", pullMissing, "`when` to get the kernel and the image: missing, never, or always look whether the registry has a newer image")
	completeFlag(c, "pull", cobra.FixedCompletions([]string{pullAlways, pullMissing, pullNever}, cobra.ShellCompDirectiveNoFileComp))
}

func (p *provision) check() error {
	if p.pull != pullMissing && p.pull != pullNever && p.pull != pullAlways {
		return api.Errorf(api.CodeInvalid, "--pull %q: not a way to get what is missing", p.pull).WithHint("it is %s, %s or %s", pullAlways, pullMissing, pullNever)
	}
	return nil
}

// create asks for a VM, and gets the kernel and the image for it if they are
// missing and known where to get.
func (d *deps) create(ctx context.Context, spec api.CreateVM, p provision) (api.VM, api.Operation, error) {
	if p.pull == pullAlways {
		if err := d.renew(ctx, spec.Image); err != nil {
			return api.VM{}, api.Operation{}, err
		}
	}
	for got := map[string]bool{}; ; {
		asking, answered := outliving(ctx)
		vm, op, err := d.client.CreateVM(asking, spec)
		answered()
		if err == nil {
			return vm, op, nil
		}
		missing := api.AsError(err)
		if p.pull == pullNever || missing.Object == "" || got[missing.Object] {
			return vm, op, err
		}
		got[missing.Object] = true
		what, err := d.provide(ctx, missing)
		if err != nil {
			return vm, op, err
		}
		if !d.quiet {
			fmt.Fprintln(d.stderr, what)
		}
	}
}
