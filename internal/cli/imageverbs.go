package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"banger/api"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// imageVerbs are the commands that do something with images that are there.
func imageVerbs(d *deps) []*cobra.Command {
	tag := command(d, "tag IMAGE NAME", "Give an image another name", "banger image tag debian base:1", cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			i, err := d.client.TagImage(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return d.made(i, i.Name, describeImage(i))
		})
	d.withQuiet(tag, "print the name only")
	history := command(d, "history IMAGE", "Show how an image came about", "banger image history debian", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			steps, err := d.client.ImageHistory(ctx, args[0])
			if err != nil {
				return err
			}
			return d.history(steps)
		})
	d.withQuiet(history, "print the layers only, one a line")
	for _, c := range []*cobra.Command{tag, history} {
		d.withJSON(c)
		c.ValidArgsFunction = first(d.images)
	}
	return []*cobra.Command{tag, history, exportCommand(d), pruneImagesCommand(d)}
}

// history shows the steps, the newest first, as other tools do.
func (d *deps) history(steps []api.ImageHistory) error {
	if d.json {
		return d.printJSON(steps)
	}
	var rows [][]string
	for i := len(steps) - 1; i >= 0; i-- {
		s := steps[i]
		if d.quiet {
			if s.Layer != "" {
				rows = append(rows, []string{s.Layer})
			}
			continue
		}
		created := ""
		if s.Created != nil {
			created = ago(*s.Created)
		}
		by := s.CreatedBy
		if s.Comment != "" {
			by += " # " + s.Comment
		}
		rows = append(rows, []string{orDash(shortID(s.Layer)), orDash(created), bytesOf(s.Size), orDash(by)})
	}
	if d.quiet {
		return d.table(nil, rows)
	}
	return d.table([]string{"LAYER", "CREATED", "SIZE", "CREATED BY"}, rows)
}

// exported is what --json says of an image that was exported.
type exported struct {
	Image string `json:"image"`
	File  string `json:"file"`
	Size  int64  `json:"size"`
}

func exportCommand(d *deps) *cobra.Command {
	c := command(d, "export IMAGE FILE|-", "Write an image to an OCI archive, which docker load and podman load take too",
		"banger image export debian debian.tar", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			name, file := args[0], args[1]
			if out, ok := d.stdout.(*os.File); file == "-" && ok && term.IsTerminal(int(out.Fd())) {
				return api.Errorf(api.CodeInvalid, "export: an archive is not for a terminal").WithHint("banger image export %s %s.tar", name, name)
			}
			if file == "-" && d.json {
				return api.Errorf(api.CodeInvalid, "export: --json and an archive on standard output").WithHint("name a file, or leave --json out")
			}
			n, err := d.export(ctx, name, file)
			switch {
			case err != nil:
				return api.About(err, "export image %q", name)
			case file == "-" || d.quiet:
				return nil
			case d.json:
				return d.printJSON(exported{name, file, n})
			}
			return d.printLine(name + " " + size(n) + " " + file)
		})
	d.withJSON(c)
	d.withQuiet(c, "show no progress, and print nothing but errors")
	c.ValidArgsFunction = func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return d.images(c, args, typed)
		}
		return fileSecond(c, args, typed)
	}
	return c
}

// export writes an image to a file, which is there when it is whole, or to standard
// output.
func (d *deps) export(ctx context.Context, name, file string) (n int64, err error) {
	r, err := d.client.ExportImage(ctx, name)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	line := newProgress(d, true)
	defer line.clear()
	in := &counter{Reader: r, line: line, step: "export " + name}
	if file == "-" {
		return io.CopyBuffer(struct{ io.Writer }{d.stdout}, in, make([]byte, streamBuffer))
	}
	out, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o644))
	if err != nil {
		return 0, api.Errorf(api.CodeInvalid, "write %s: %w", file, errors.Unwrap(err)).WithHint("name a file that you may write")
	}
	defer out.Cleanup()
	if n, err = io.CopyBuffer(struct{ io.Writer }{out}, in, make([]byte, streamBuffer)); err != nil {
		return n, err
	}
	return n, out.CloseAtomicallyReplace()
}

// pruneImagesCommand is banger image prune.
func pruneImagesCommand(d *deps) *cobra.Command {
	var req api.PruneImages
	var force bool
	var keep bytesFlag
	c := command(d, "prune", "Remove images that no VM needs: those that have lost their name, or all", "banger image prune --all --keep 20G --dry-run", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			req.Keep = int64(keep)
			return d.prune(ctx, force, req.DryRun, func(dry bool) (api.Pruned, error) {
				req.DryRun = dry
				return d.client.PruneImages(ctx, req)
			})
		})
	var unused time.Duration
	c.PreRunE = func(*cobra.Command, []string) error {
		if req.UnusedFor = unused.Seconds(); unused < 0 {
			return api.Errorf(api.CodeInvalid, "prune: --unused-for %v: it is negative", unused).WithHint("it is like 48h")
		}
		if keep > 0 && !req.All {
			return api.Errorf(api.CodeInvalid, "prune: --keep without --all").WithHint("banger image prune --all --keep %s", keep.String())
		}
		return nil
	}
	c.Flags().BoolVarP(&req.All, "all", "a", false, "also images that have a name; those of yours, for root all")
	c.Flags().Var(&keep, "keep", "with --all: remove the least recently used only, until the others take no more than this `size`")
	c.Flags().DurationVar(&unused, "unused-for", 0, "only those that no VM has been made of for this `time`, e.g. 48h")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "only show what would go")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	completeFlag(c, "keep", cobra.NoFileCompletions)
	completeFlag(c, "unused-for", cobra.NoFileCompletions)
	d.withJSON(c)
	d.withQuiet(c, "print nothing but errors")
	return c
}
