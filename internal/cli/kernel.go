package cli

import (
	"context"

	"banger/api"

	"github.com/spf13/cobra"
)

var kernelKind = kind[api.Kernel]{
	none: "no kernels; banger kernel pull gets one",
	ref:  func(k api.Kernel) string { return k.Name },
	columns: []column[api.Kernel]{
		{"NAME", func(k api.Kernel) string { return k.Name }},
		{"SOURCE", func(k api.Kernel) string { return k.Source }},
		{"DEFAULT", func(k api.Kernel) string { return choose(k.Default, "default", "") }},
		{"SIZE", func(k api.Kernel) string { return size(k.Size) }},
		{"CREATED", func(k api.Kernel) string { return ago(k.Created) }},
	},
	details: []column[api.Kernel]{
		{"name", func(k api.Kernel) string { return k.Name }},
		{"release", func(k api.Kernel) string { return k.Release }},
		{"source", func(k api.Kernel) string { return k.Source }},
		{"default", func(k api.Kernel) string { return choose(k.Default, "yes", "no") }},
		{"size", func(k api.Kernel) string { return size(k.Size) }},
		{"created", func(k api.Kernel) string { return when(k.Created) }},
	},
}

func describeKernel(k api.Kernel) string { return k.Name + " " + size(k.Size) }

func kernelCommands(d *deps) *cobra.Command {
	const example = "6.1.0-1-cloud-amd64"
	shown := show(d, kernelKind, "show NAME", "Show a kernel", "banger kernel show "+example, d.client.Kernel)
	shown.ValidArgsFunction = first(d.kernels)
	rm := remover(d, "Remove kernels that no VM uses", "banger kernel rm "+example, d.client.RemoveKernel)
	rm.ValidArgsFunction = d.kernels
	pull := command(d, "pull", "Get the distribution's kernel for virtual machines through the host's package manager", "banger kernel pull",
		cobra.NoArgs, func(ctx context.Context, _ []string) error {
			k, err := d.pullKernel(ctx)
			if err != nil {
				return err
			}
			return d.made(k, k.Name, describeKernel(k))
		})
	importing := command(d, "import NAME FILE|-", "Make a kernel bundle of a Debian package", "banger kernel import mine linux-image.deb",
		cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			line := newProgress(d, true)
			defer line.clear()
			r, done, err := d.open(args[1], "import "+args[0], line)
			if err != nil {
				return err
			}
			defer done()
			k, err := d.client.ImportKernel(ctx, args[0], r)
			if err != nil {
				return err
			}
			line.clear()
			return d.made(k, k.Name, describeKernel(k))
		})
	importing.ValidArgsFunction = fileSecond
	for _, c := range []*cobra.Command{pull, importing} {
		d.withJSON(c)
		d.withQuiet(c, "show no progress, and of the kernel the name only")
	}
	return group("kernel", "Get and remove kernels", "banger kernel pull", pull, importing,
		list(d, kernelKind, "List kernels", "banger kernel list", d.client.Kernels), shown, rm)
}

// pullKernel gets the kernel that the host's package manager offers.
func (d *deps) pullKernel(ctx context.Context) (api.Kernel, error) {
	asking, answered := outliving(ctx)
	op, err := d.client.PullKernel(asking)
	answered()
	if err != nil {
		return api.Kernel{}, err
	}
	line := newProgress(d, true)
	defer line.clear()
	op, err = d.wait(ctx, op, line.report)
	if err != nil {
		return api.Kernel{}, err
	}
	return d.client.Kernel(context.WithoutCancel(ctx), op.Result)
}
