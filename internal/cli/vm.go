package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"banger/api"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// bytesFlag is a flag that takes a size such as 512M.
type bytesFlag int64

func (b *bytesFlag) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err == nil && n <= 0 {
		err = fmt.Errorf("%q is not a size", s)
	}
	*b = bytesFlag(n)
	return err
}
func (b *bytesFlag) Type() string { return "size" }
func (b *bytesFlag) String() string {
	if *b == 0 {
		return ""
	}
	return size(int64(*b))
}

// optionalSize is a flag that takes a size or 0 and knows whether it was given.
type optionalSize struct{ value **int64 }

func (o *optionalSize) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err == nil && n < 0 {
		err = fmt.Errorf("%q is not a size", s)
	}
	*o.value = &n
	return err
}
func (o *optionalSize) Type() string { return "size" }
func (o *optionalSize) String() string {
	if *o.value == nil {
		return ""
	}
	return size(**o.value)
}

func specFlags(f *pflag.FlagSet, spec *api.CreateVM) {
	f.StringVar(&spec.Name, "name", "", "name of the VM; a random one by default")
	f.StringVar(&spec.Image, "image", "", "image to make it from; the configured one by default")
	f.StringVar(&spec.Kernel, "kernel", "", "kernel to boot; the default one by default")
	f.IntVar(&spec.CPUs, "cpus", 0, "number of CPUs (default 1, or as configured)")
	f.Var((*bytesFlag)(&spec.Memory), "memory", "memory, e.g. 512M (default 512M, or as configured)")
	f.Var(&optionalSize{&spec.DiskSize}, "disk", "size of the work disk at /root, which outlives the root, 0 for none (default 10G, or as configured)")
	f.Var((*bytesFlag)(&spec.RootSize), "root-size", "room for what the VM writes, e.g. 10G (default 10G, or as configured)")
}

// checkSpec refuses the zeros that the API takes for "the default".
func checkSpec(c *cobra.Command) error {
	if f := c.Flags().Lookup("cpus"); f != nil && f.Changed && f.Value.String() == "0" {
		return api.Errorf(api.CodeInvalid, "create VM: 0 CPUs").WithHint("--cpus takes 1 or more")
	}
	return nil
}

func vmCommands(d *deps) *cobra.Command {
	one := cobra.ExactArgs(1)
	simple := func(verb, short string, do func(context.Context, string) (api.Operation, error)) *cobra.Command {
		return command(d, verb+" VM", short, "banger vm "+verb+" api", one, func(ctx context.Context, args []string) error {
			op, err := do(ctx, args[0])
			return d.wait(ctx, op, err)
		})
	}
	var timeout time.Duration
	stop := simple("stop", "Stop a VM: ask its agent, press its power button, then kill it", func(ctx context.Context, ref string) (api.Operation, error) {
		return d.client.StopVM(ctx, ref, timeout)
	})
	stop.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long the guest is given")
	var force bool
	remove := simple("delete", "Delete a VM and its disks", func(ctx context.Context, ref string) (api.Operation, error) {
		return d.client.DeleteVM(ctx, ref, force)
	})
	remove.Aliases = []string{"rm"}
	remove.Flags().BoolVarP(&force, "force", "f", false, "whatever its state is")
	logs := command(d, "logs VM", "Show the console of a VM", "banger vm logs api", one, func(ctx context.Context, args []string) error {
		r, err := d.client.Logs(ctx, args[0])
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(d.stdout, r)
		return err
	})
	var spec api.CreateVM
	create := command(d, "create", "Create a VM without starting it", "banger vm create --name api --memory 1G", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			vm, op, err := d.client.CreateVM(ctx, spec)
			if err := d.wait(ctx, op, err); err != nil {
				return err
			}
			_, err = fmt.Fprintln(d.stdout, vm.Name)
			return err
		})
	create.PreRunE = func(c *cobra.Command, _ []string) error { return checkSpec(c) }
	specFlags(create.Flags(), &spec)
	named := []*cobra.Command{
		simple("start", "Start a stopped VM", d.client.StartVM), stop,
		simple("kill", "End a VM at once", d.client.KillVM), remove, showCommand(d), execCommand(d), logs,
	}
	for _, c := range named {
		c.ValidArgsFunction = d.completeVM
	}
	named = append(named, changeCommands(d)...)
	return group("vm", "Run virtual machines", "  banger vm run --name api -- make test",
		append([]*cobra.Command{runCommand(d), create, listCommand(d)}, named...)...)
}

func listCommand(d *deps) *cobra.Command {
	var asJSON, quiet bool
	c := command(d, "list", "List VMs", "banger vm list", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		vms, err := d.client.VMs(ctx)
		if err != nil || asJSON {
			return orJSON(d, vms, err)
		}
		var rows [][]string
		for _, v := range vms {
			if quiet {
				fmt.Fprintln(d.stdout, v.ID)
			}
			rows = append(rows, []string{v.ID, v.Name, string(v.State), v.Image, str(v.CPUs), size(v.Memory), ago(v.Created)})
		}
		if quiet {
			return nil
		}
		return d.table("no VMs; banger vm run makes one", []string{"ID", "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "CREATED"}, rows)
	})
	c.Aliases = []string{"ls"}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return c
}

// steps is the time line of a start.
func steps(all []api.Step) string {
	var words []string
	for _, s := range all {
		words = append(words, fmt.Sprintf("%s %.0f ms", s.Name, 1000*s.Seconds))
	}
	return strings.Join(words, ", ")
}

// orJSON prints v, unless there is an error.
func orJSON(d *deps, v any, err error) error {
	if err != nil {
		return err
	}
	return d.printJSON(v)
}

func showCommand(d *deps) *cobra.Command {
	var asJSON bool
	c := command(d, "show VM", "Show a VM", "banger vm show api --json", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		v, err := d.client.VM(ctx, args[0])
		if err != nil || asJSON {
			return orJSON(d, v, err)
		}
		rows := [][]string{
			{"name", v.Name}, {"id", v.ID}, {"state", string(v.State)}, {"image", v.Image + " (" + v.ImageID + ")"}, {"kernel", v.Kernel},
			{"cpus", str(v.CPUs)}, {"memory", size(v.Memory)}, {"root size", size(v.RootSize)}, {"disk", size(v.DiskSize)}, {"created", ago(v.Created)},
		}
		if v.Started != nil {
			rows = append(rows, []string{"started", ago(*v.Started)}, []string{"engine", v.Engine}, []string{"pid", str(v.PID)})
		}
		if len(v.Steps) > 0 {
			rows = append(rows, []string{"start", steps(v.Steps)})
		}
		if len(v.Pending) > 0 {
			rows = append(rows, []string{"next start", strings.Join(v.Pending, ", ") + " will change"})
		}
		if v.LastError != "" {
			rows = append(rows, []string{"last error", v.LastError})
		}
		return d.table("", rows[0], rows[1:])
	})
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
