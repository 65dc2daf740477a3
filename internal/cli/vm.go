package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"banger/api"
	"banger/internal/config"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// bytesFlag is a flag that takes a size such as 512M.
type bytesFlag int64

func (b *bytesFlag) Set(s string) error {
	n, err := parseSize(s)
	if err == nil && n == 0 {
		err = errors.New("it cannot be 0")
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
	n, err := parseSize(s)
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

// optionalText is a flag that takes a word and knows whether it was given.
type optionalText struct{ value **string }

func (o optionalText) Set(s string) error {
	*o.value = &s
	return nil
}
func (o optionalText) Type() string { return "name" }
func (o optionalText) String() string {
	if *o.value == nil {
		return ""
	}
	return **o.value
}

// ioFlag is a flag that takes limits of disks and knows whether it was given.
type ioFlag struct{ value **api.IO }

func (f *ioFlag) Set(s string) error {
	var io config.IO
	if err := io.UnmarshalText([]byte(s)); err != nil {
		return err
	}
	*f.value = (*api.IO)(&io)
	return nil
}
func (f *ioFlag) Type() string { return "limits" }
func (f *ioFlag) String() string {
	if *f.value == nil {
		return ""
	}
	return config.IO(**f.value).String()
}

// parseSize reads a size as people write it.
func parseSize(s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 { // what overflows is negative
		return 0, fmt.Errorf("%q is not a size, such as 512M or 10G", s)
	}
	return n, nil
}

var vmKind = kind[api.VM]{
	none: "no VMs; banger vm run makes one",
	ref:  func(v api.VM) string { return v.ID },
	columns: []column[api.VM]{
		{"ID", func(v api.VM) string { return v.ID }},
		{"NAME", func(v api.VM) string { return v.Name }},
		{"STATE", stateAndHealth},
		{"IMAGE", func(v api.VM) string { return v.Image }},
		{"CPUS", func(v api.VM) string { return str(v.CPUs) }},
		{"MEMORY", func(v api.VM) string { return size(v.Memory) }},
		{"IP", func(v api.VM) string { return v.IP }},
		{"CREATED", func(v api.VM) string { return ago(v.Created) }},
	},
	details: []column[api.VM]{
		{"name", func(v api.VM) string { return v.Name }},
		{"id", func(v api.VM) string { return v.ID }},
		{"state", func(v api.VM) string { return string(v.State) }},
		{"health", health},
		{"last error", func(v api.VM) string { return v.LastError }},
		{"owner", func(v api.VM) string { return owner(v.Owner) }},
		{"image", func(v api.VM) string { return v.Image + " (" + v.ImageID + ")" }},
		{"command", func(v api.VM) string { return quoted(v.Command) }},
		{"ports", func(v api.VM) string { return strings.Join(v.Ports, ", ") }},
		{"kernel", func(v api.VM) string { return v.Kernel }},
		{"init", func(v api.VM) string { return choose(v.Init, "the image's", "the agent") }},
		{"cpus", func(v api.VM) string { return str(v.CPUs) }},
		{"memory", func(v api.VM) string { return size(v.Memory) }},
		{"root disk", func(v api.VM) string { return string(v.RootDisk) }},
		{"root size", func(v api.VM) string { return size(v.RootSize) }},
		{"disk size", func(v api.VM) string { return sizeOrNone(v.DiskSize) }},
		{"network", func(v api.VM) string { return string(v.Network) }},
		{"nat", func(v api.VM) string { return choose(v.NAT, "yes", "no") }},
		{"io limits", func(v api.VM) string {
			if v.IO == (api.IO{}) {
				return ""
			}
			return config.IO(v.IO).String()
		}},
		{"ip", func(v api.VM) string { return v.IP }},
		{"mac", func(v api.VM) string { return v.MAC }},
		{"ephemeral", func(v api.VM) string { return choose(v.Ephemeral, "yes", "no") }},
		{"created", func(v api.VM) string { return when(v.Created) }},
		{"started", func(v api.VM) string {
			if v.Started == nil {
				return ""
			}
			return when(*v.Started)
		}},
		{"vmm", func(v api.VM) string { return string(v.VMM) }},
		{"engine", func(v api.VM) string {
			if v.EngineWhy == "" {
				return v.Engine
			}
			return v.Engine + " (" + v.EngineWhy + ")"
		}},
		{"pid", func(v api.VM) string {
			if v.PID == 0 {
				return ""
			}
			return str(v.PID)
		}},
		{"agent", func(v api.VM) string { return v.Agent }},
		{"start", func(v api.VM) string { return steps(v.Steps) }},
		{"at the next start", func(v api.VM) string { return strings.Join(v.Pending, ", ") }},
	},
}

// stateAndHealth is a VM's state, with what the health check of its image says.
func stateAndHealth(v api.VM) string {
	if v.Health == nil {
		return string(v.State)
	}
	return fmt.Sprintf("%s (%s)", v.State, v.Health.Status)
}

func health(v api.VM) string {
	h := v.Health
	switch {
	case h == nil:
		return ""
	case h.Failing == 0:
		return string(h.Status)
	}
	return fmt.Sprintf("%s, the last %d failed; exit status %d: %s", h.Status, h.Failing, h.Exit, strings.TrimSpace(h.Output))
}

// steps is the time line of a start.
func steps(all []api.Step) string {
	var words []string
	for _, s := range all {
		words = append(words, fmt.Sprintf("%s %.0f ms", s.Name, 1000*s.Seconds))
	}
	return strings.Join(words, ", ")
}

func vmCommands(d *deps) *cobra.Command {
	var patience timeoutFlag
	var reason string
	stop := verb(d, "stop", "Stop VMs: ask the agent, press the power button, then kill", func(ctx context.Context, ref string) (api.Operation, error) {
		return d.client.StopVM(ctx, ref, api.StopVM{Timeout: patience.timeout.Seconds(), Reason: reason})
	}, d.vmNow)
	patience.add(stop)
	stop.Flags().StringVar(&reason, "reason", "", "why, for those who wonder: banger vm show tells it")
	completeFlag(stop, "reason", cobra.NoFileCompletions)
	orAll(d, stop)
	var force bool
	remove := verb(d, "delete", "Delete VMs and their disks", func(ctx context.Context, ref string) (api.Operation, error) {
		return d.client.DeleteVM(ctx, ref, force)
	}, func(_ context.Context, vm api.VM) (any, error) { return gone{ID: vm.ID, Name: vm.Name}, nil })
	remove.Aliases = []string{"rm"}
	remove.Flags().BoolVarP(&force, "force", "f", false, "whatever their state is")
	var cold bool
	start := verb(d, "start", "Start stopped VMs, and wake suspended ones", func(ctx context.Context, ref string) (api.Operation, error) {
		if cold {
			return d.client.ColdStartVM(ctx, ref)
		}
		return d.client.StartVM(ctx, ref)
	}, d.vmNow)
	start.Flags().BoolVar(&cold, "cold", false, "boot suspended ones, as after a power failure: what was in their memory is lost")
	several := []*cobra.Command{
		start, stop,
		verb(d, "pause", "Have running VMs stand still, in memory", d.client.PauseVM, d.vmNow),
		verb(d, "resume", "Have paused VMs go on", d.client.ResumeVM, d.vmNow),
		verb(d, "suspend", "Have VMs stand still, on the disk; start wakes them, also after a restart of the host", d.client.SuspendVM, d.vmNow),
		verb(d, "kill", "End VMs at once; suspended ones forget what they were at", d.client.KillVM, d.vmNow), remove,
	}
	for _, c := range several {
		c.ValidArgsFunction = d.vms
	}
	one := []*cobra.Command{show(d, vmKind, "show VM", "Show a VM", "banger vm show api", d.client.VM), execCommand(d), logsCommand(d)}
	one = append(one, sshCommands(d)...)
	for _, c := range one {
		c.ValidArgsFunction = first(d.vms)
	}
	c := group("vm", "Run virtual machines", "banger vm run --name api -- make test", runCommand(d), createCommand(d),
		list(d, vmKind, "List VMs", "banger vm list", d.client.VMs))
	c.AddCommand(copyCommand(d), statsCommand(d), portsCommand(d))
	c.AddCommand(several...)
	c.AddCommand(one...)
	c.AddCommand(changeCommands(d)...)
	return c
}

// timeoutFlag says how long a guest is given to stop.
type timeoutFlag struct{ timeout time.Duration }

func (t *timeoutFlag) add(c *cobra.Command) {
	c.Flags().DurationVar(&t.timeout, "timeout", 10*time.Second, "how long the guest is given to stop")
	completeFlag(c, "timeout", cobra.NoFileCompletions)
	c.PreRunE = func(*cobra.Command, []string) error {
		if t.timeout <= 0 {
			return api.Errorf(api.CodeInvalid, "stop VM: timeout %v: not more than 0", t.timeout).WithHint("banger vm kill ends a VM at once")
		}
		return nil
	}
}

// gone is what --json says of an object that was removed.
type gone struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name"`
}

// vmNow is a VM as it is by now.
func (d *deps) vmNow(ctx context.Context, vm api.VM) (any, error) {
	return d.client.VM(context.WithoutCancel(ctx), vm.ID)
}

// verb is a command that does something to VMs: it asks for all, then waits for all.
// With --json it prints, in a list, what left says of those to which it was done.
func verb(d *deps, name, short string, begin func(context.Context, string) (api.Operation, error),
	left func(context.Context, api.VM) (any, error)) *cobra.Command {
	c := command(d, name+" VM...", short, "banger vm "+name+" api", cobra.MinimumNArgs(1), func(ctx context.Context, refs []string) error {
		type begun struct {
			vm  api.VM
			op  api.Operation
			err error
		}
		var all []begun
		for _, ref := range refs {
			vm, err := d.client.VM(ctx, ref)
			b := begun{vm: vm, err: err}
			if err == nil {
				asking, answered := outliving(ctx)
				b.op, b.err = begin(asking, vm.ID)
				answered()
			}
			all = append(all, b)
		}
		return each(d, all, func(b begun) (string, any, error) {
			if _, err := d.operate(ctx, b.op, b.err); err != nil || !d.json {
				return b.vm.Name, nil, err
			}
			v, err := left(ctx, b.vm)
			return b.vm.Name, v, err
		})
	})
	d.withJSON(c)
	d.withQuiet(c, "do not print their names")
	return c
}

// orAll has a command that takes VMs take --all in their place: those that run.
func orAll(d *deps, c *cobra.Command) {
	var all bool
	c.Use = strings.Replace(c.Use, "VM...", "VM...|--all", 1)
	c.Flags().BoolVar(&all, "all", false, "all VMs that run, of all users for root")
	named, run := c.Args, c.RunE
	c.Args = func(c *cobra.Command, args []string) error {
		if all {
			return usage(cobra.NoArgs)(c, args)
		}
		return named(c, args)
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if !all {
			return run(c, args)
		}
		if err := d.connect(c.Context()); err != nil {
			return err
		}
		vms, err := d.client.VMs(c.Context())
		if err != nil {
			return err
		}
		for _, vm := range vms {
			if vm.State != api.VMStopped && vm.State != api.VMSuspended && vm.State != api.VMDeleting {
				args = append(args, vm.ID)
			}
		}
		return run(c, args)
	}
}

// each does something to all objects, whether or not it can be done to the others,
// and says to which it was done: their names, or with --json the list of what do has
// for them.
func each[T any](d *deps, all []T, do func(T) (string, any, error)) error {
	var failed failures
	list := []any{}
	for _, object := range all {
		name, v, err := do(object)
		if err == nil && d.json {
			list = append(list, v)
		} else if err == nil {
			err = d.done(name)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	if d.json {
		if err := d.printJSON(list); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return failed
}
