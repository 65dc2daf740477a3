package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"

	"banger/api"
	"banger/internal/bootstrap"

	"github.com/spf13/cobra"
)

// open opens FILE, or standard input for "-", as the user who calls.
func (d *deps) open(name, step string, line *progress) (io.Reader, func(), error) {
	if name == "-" {
		return &counter{Reader: d.stdin, line: line, step: step}, func() {}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, api.Errorf(api.CodeInvalid, "%w", err)
	}
	c := &counter{Reader: f, line: line, step: step}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		c.total = info.Size()
	}
	return c, func() { f.Close() }, nil
}

func imageCommands(d *deps) *cobra.Command {
	var asJSON bool
	list := command(d, "list", "List images", "banger image list", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		images, err := d.client.Images(ctx)
		if err != nil || asJSON {
			return orJSON(d, images, err)
		}
		var rows [][]string
		for _, i := range images {
			rows = append(rows, []string{i.Name, i.ID[:min(19, len(i.ID))], size(i.Size), str(i.Entries), ago(i.Created)})
		}
		return d.table("no images; banger image bootstrap debian makes one", []string{"NAME", "ID", "SIZE", "ENTRIES", "CREATED"}, rows)
	})
	list.Aliases = []string{"ls"}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	show := command(d, "show NAME", "Show an image, as JSON", "banger image show debian", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		image, err := d.client.Image(ctx, args[0])
		return orJSON(d, image, err)
	})
	show.Flags().Bool("json", true, "print JSON")
	rm := command(d, "rm NAME", "Remove an image that no VM uses", "banger image rm debian", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return d.client.RemoveImage(ctx, args[0])
	})
	importing := command(d, "import NAME FILE|-", "Make an image of a root file system archive (tar; plain, gzip, zstd or xz)",
		"banger image import alpine rootfs.tar.gz", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			line := newProgress(d)
			r, done, err := d.open(args[1], "import", line)
			if err != nil {
				return err
			}
			defer done()
			image, err := d.client.ImportImage(ctx, args[0], r)
			line.clear()
			return d.made(image, err)
		})
	boot := command(d, "bootstrap DISTRIBUTION [NAME]", "Make an image of the host's own distribution with mmdebstrap",
		"banger image bootstrap debian", cobra.RangeArgs(1, 2), func(ctx context.Context, args []string) error {
			return d.bootstrap(ctx, args[0], cmp.Or(append(args, "")[1], args[0]))
		})
	return group("image", "Make and remove the images of VMs", "  banger image bootstrap debian", importing, boot, list, show, rm)
}

func (d *deps) made(image api.Image, err error) error {
	if err == nil {
		_, err = fmt.Fprintf(d.stdout, "%s %s\n", image.Name, image.ID)
	}
	return err
}

func (d *deps) bootstrap(ctx context.Context, distribution, name string) error {
	if _, err := d.client.Image(ctx, name); err == nil {
		return api.Errorf(api.CodeAlreadyExists, "bootstrap image %q: an image of that name exists", name).WithHint("banger image rm %s", name)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() {
		err := bootstrap.Run(ctx, distribution, w, io.Discard)
		w.CloseWithError(err) // a broken archive: the daemon imports nothing
		result <- err
	}()
	line := newProgress(d)
	image, err := d.client.ImportImage(ctx, name, &counter{Reader: r, line: line, step: "bootstrap " + distribution})
	line.clear()
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		cancel()
	}
	if berr := <-result; berr != nil && err != nil && api.CodeOf(berr) != api.CodeInternal {
		return berr
	}
	return d.made(image, err)
}

func kernelCommands(d *deps) *cobra.Command {
	var asJSON bool
	list := command(d, "list", "List kernels", "banger kernel list", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		kernels, err := d.client.Kernels(ctx)
		if err != nil || asJSON {
			return orJSON(d, kernels, err)
		}
		var rows [][]string
		for _, k := range kernels {
			def := ""
			if k.Default {
				def = "default"
			}
			rows = append(rows, []string{k.Name, k.Source, def, size(k.Size), ago(k.Created)})
		}
		return d.table("no kernels; banger kernel pull gets one", []string{"NAME", "SOURCE", "DEFAULT", "SIZE", "CREATED"}, rows)
	})
	list.Aliases = []string{"ls"}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	show := command(d, "show NAME", "Show a kernel, as JSON", "banger kernel show 6.1.0-1-cloud-amd64", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		k, err := d.client.Kernel(ctx, args[0])
		return orJSON(d, k, err)
	})
	rm := command(d, "rm NAME", "Remove a kernel that no VM uses", "banger kernel rm 6.1.0-1-cloud-amd64", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return d.client.RemoveKernel(ctx, args[0])
	})
	pull := command(d, "pull", "Get the distribution's kernel for virtual machines through the host's package manager", "banger kernel pull",
		cobra.NoArgs, func(ctx context.Context, _ []string) error {
			op, err := d.client.PullKernel(ctx)
			return d.wait(ctx, op, err)
		})
	importing := command(d, "import NAME FILE|-", "Make a kernel bundle of a Debian package", "banger kernel import mine linux-image.deb",
		cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			line := newProgress(d)
			r, done, err := d.open(args[1], "import", line)
			if err != nil {
				return err
			}
			defer done()
			k, err := d.client.ImportKernel(ctx, args[0], r)
			line.clear()
			if err == nil {
				_, err = fmt.Fprintln(d.stdout, k.Name)
			}
			return err
		})
	return group("kernel", "Get and remove kernels", "  banger kernel pull", pull, importing, list, show, rm)
}
