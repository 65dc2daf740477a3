package cli

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

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
		{"VMS", func(k api.Kernel) string { return strings.Join(k.VMs, ", ") }},
		{"CREATED", func(k api.Kernel) string { return ago(k.Created) }},
	},
	details: []column[api.Kernel]{
		{"name", func(k api.Kernel) string { return k.Name }},
		{"release", func(k api.Kernel) string { return k.Release }},
		{"source", func(k api.Kernel) string { return k.Source }},
		{"default", func(k api.Kernel) string { return choose(k.Default, "yes", "no") }},
		{"size", func(k api.Kernel) string { return size(k.Size) }},
		{"vms", func(k api.Kernel) string { return strings.Join(k.VMs, ", ") }},
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
	var check bool
	pull := command(d, "pull", "Get the distribution's kernel for virtual machines through the host's package manager", "banger kernel pull --check",
		cobra.NoArgs, func(ctx context.Context, _ []string) error {
			if check {
				return d.checkKernel(ctx)
			}
			k, err := d.pullKernel(ctx)
			if err != nil {
				return err
			}
			return d.made(k, k.Name, describeKernel(k))
		})
	pull.Flags().BoolVar(&check, "check", false, "only say whether there is a newer one than those that are here")
	var config string
	importing := command(d, "import NAME FILE|-", "Make a kernel of a Debian package, of what make tar-pkg makes, or of a vmlinux or bzImage", "banger kernel import mine vmlinux --config .config",
		cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			line := newProgress(d, true)
			defer line.clear()
			r, done, err := d.open(args[1], "import "+args[0], line)
			if err != nil {
				return err
			}
			defer done()
			if config != "" {
				both, err := withConfig(r, config)
				if err != nil {
					return fmt.Errorf("import %s: %w", args[0], err)
				}
				defer both.Close()
				r = both
			}
			k, err := d.client.ImportKernel(ctx, args[0], r)
			if err != nil {
				return err
			}
			line.clear()
			return d.made(k, k.Name, describeKernel(k))
		})
	importing.Flags().StringVar(&config, "config", "", "`file` with the configuration that a vmlinux or bzImage was built with, where it does not carry it")
	importing.ValidArgsFunction = fileSecond
	setDefault := command(d, "default NAME", "Make a kernel the one that VMs get for which none is named", "banger kernel default "+example,
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			k, err := d.client.DefaultKernel(ctx, args[0])
			if err != nil {
				return err
			}
			return d.made(k, k.Name, k.Name)
		})
	setDefault.ValidArgsFunction = first(d.kernels)
	d.withJSON(setDefault)
	d.withQuiet(setDefault, "print the name only")
	for _, c := range []*cobra.Command{pull, importing} {
		d.withJSON(c)
		d.withQuiet(c, "show no progress, and of the kernel the name only")
	}
	return group("kernel", "Get and remove kernels", "banger kernel pull", pull, importing, setDefault,
		list(d, kernelKind, "List kernels", "banger kernel list", d.client.Kernels), shown, rm)
}

// checkKernel says whether the host's package manager has a newer kernel.
func (d *deps) checkKernel(ctx context.Context) error {
	offer, err := d.client.OfferedKernel(ctx)
	switch {
	case err != nil:
		return err
	case d.json:
		return d.printJSON(offer)
	case offer.Kernel != "" && d.quiet:
		return nil
	case offer.Kernel != "":
		return d.printLine(offer.Kernel + " is the newest (" + offer.Package + " " + offer.Version + ")")
	case d.quiet:
		return d.printLine(offer.Release)
	}
	return d.printLine(offer.Release + " is offered (" + offer.Package + " " + offer.Version + "): banger kernel pull")
}

// withConfig is an archive of a kernel and its configuration, as the kernel's own build
// makes it.
func withConfig(image io.Reader, config string) (io.ReadCloser, error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "--config: %w", err).WithHint("name the .config that the kernel was built with")
	}
	sized, ok := image.(interface{ Len() int })
	if !ok || sized.Len() == 0 {
		return nil, api.Errorf(api.CodeInvalid, "--config: the size of the kernel is not known").WithHint("name a file instead of standard input")
	}
	size := int64(sized.Len())
	r, w := io.Pipe()
	go func() {
		out := tar.NewWriter(w)
		err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "boot/config-custom", Mode: 0o644, Size: int64(len(text))})
		if err == nil {
			_, err = out.Write(text)
		}
		if err == nil {
			err = out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "boot/vmlinuz-custom", Mode: 0o644, Size: size})
		}
		if err == nil {
			_, err = io.CopyN(out, image, size)
		}
		if err == nil {
			err = out.Close()
		}
		w.CloseWithError(err)
	}()
	return r, nil
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
