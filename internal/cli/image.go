package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"banger/api"
	"banger/internal/bootstrap"

	"github.com/spf13/cobra"
)

var imageKind = kind[api.Image]{
	none: "no images; banger image pull gets one, banger image bootstrap makes one",
	ref:  func(i api.Image) string { return i.Name },
	columns: []column[api.Image]{
		{"NAME", func(i api.Image) string { return i.Name }},
		{"ID", func(i api.Image) string { return shortID(i.ID) }},
		{"SIZE", func(i api.Image) string { return size(i.Size) }},
		{"ENTRIES", func(i api.Image) string { return str(i.Entries) }},
		{"CREATED", func(i api.Image) string { return ago(i.Created) }},
	},
	details: []column[api.Image]{
		{"name", func(i api.Image) string { return i.Name }},
		{"id", func(i api.Image) string { return i.ID }},
		{"owner", func(i api.Image) string { return owner(i.Owner) }},
		{"source", func(i api.Image) string { return i.Source }},
		{"digest", func(i api.Image) string { return i.Digest }},
		{"platform", func(i api.Image) string { return i.Platform }},
		{"size", func(i api.Image) string { return size(i.Size) }},
		{"entries", func(i api.Image) string { return str(i.Entries) }},
		{"layers", func(i api.Image) string {
			var layers []string
			for _, l := range i.Layers {
				layers = append(layers, shortID(l.Digest)+" ("+size(l.Size)+")")
			}
			return strings.Join(layers, ", ")
		}},
		{"created", func(i api.Image) string { return when(i.Created) }},
		{"entrypoint", func(i api.Image) string { return quoted(i.Config.Entrypoint) }},
		{"command", func(i api.Image) string { return quoted(i.Config.Cmd) }},
		{"user", func(i api.Image) string { return i.Config.User }},
		{"directory", func(i api.Image) string { return i.Config.WorkingDir }},
		{"environment", func(i api.Image) string { return quoted(i.Config.Env) }},
		{"ports", func(i api.Image) string { return strings.Join(i.Config.ExposedPorts, ", ") }},
		{"stop signal", func(i api.Image) string { return i.Config.StopSignal }},
		{"health check", func(i api.Image) string { return healthcheck(i.Config.Healthcheck) }},
		{"labels", func(i api.Image) string {
			var labels []string
			for _, name := range slices.Sorted(maps.Keys(i.Config.Labels)) {
				labels = append(labels, name+"="+i.Config.Labels[name])
			}
			return quoted(labels)
		}},
	},
}

// quoted is a list of words as a shell would take it.
func quoted(words []string) string {
	var out []string
	for _, w := range words {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return !strings.ContainsRune(plainRunes, r) }) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		out = append(out, w)
	}
	return strings.Join(out, " ")
}

// plainRunes mean nothing but themselves to a shell.
const plainRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=,@%+-"

func healthcheck(h *api.Healthcheck) string {
	if h == nil {
		return ""
	}
	every := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	return fmt.Sprintf("%s (every %v, timeout %v, %d retries, start period %v)", quoted(h.Test[1:]), every(h.Interval), every(h.Timeout), h.Retries, every(h.StartPeriod))
}

func describeImage(i api.Image) string { return i.Name + " " + size(i.Size) + " " + shortID(i.ID) }

func imageCommands(d *deps) *cobra.Command {
	shown := show(d, imageKind, "show NAME", "Show an image", "banger image show debian", d.client.Image)
	shown.ValidArgsFunction = first(d.images)
	importing := command(d, "import NAME FILE|-", "Make an image of an archive: of a root file system, an OCI layout or docker save",
		"banger image import alpine rootfs.tar.gz", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			if err := d.imageNameFree(ctx, "import", args[0]); err != nil {
				return err
			}
			line := newProgress(d, true)
			defer line.clear()
			r, done, err := d.open(args[1], "import "+args[0], line)
			if err != nil {
				return err
			}
			defer done()
			image, err := d.client.ImportImage(ctx, args[0], r)
			return d.madeImage(image, err, line)
		})
	importing.ValidArgsFunction = fileSecond
	var include []string
	boot := command(d, "bootstrap DISTRIBUTION [NAME]", "Make an image of the host's own distribution with mmdebstrap",
		"banger image bootstrap debian full --include systemd-sysv,dbus", cobra.RangeArgs(1, 2), func(ctx context.Context, args []string) error {
			image, err := d.bootstrap(ctx, args[0], cmp.Or(append(args, "")[1], args[0]), include)
			return d.madeImage(image, err, nil)
		})
	boot.Flags().StringSliceVar(&include, "include", nil, "packages to install besides the distribution's minimum, separated by commas")
	completeFlag(boot, "include", cobra.NoFileCompletions)
	boot.ValidArgsFunction = first(cobra.FixedCompletions(bootstrap.Names(), cobra.ShellCompDirectiveNoFileComp))
	for _, c := range []*cobra.Command{importing, boot} {
		d.withJSON(c)
		d.withQuiet(c, "show no progress, and of the image the name only")
	}
	pull := d.pullCommand()
	rm := remover(d, "Remove images that no VM uses", "banger image rm debian", d.client.RemoveImage)
	rm.ValidArgsFunction = d.images
	c := group("image", "Make and remove the images of VMs", "banger image pull python:3", pull, importing, boot, d.buildCommand(),
		list(d, imageKind, "List images", "banger image list", d.client.Images), shown, rm)
	c.AddCommand(imageVerbs(d)...)
	return c
}

// imageNameFree refuses a name that the caller has given to an image already, before
// much is sent. One of root's may be covered by one's own.
func (d *deps) imageNameFree(ctx context.Context, verb, name string) error {
	if i, err := d.client.Image(ctx, name); err == nil && int(i.Owner) == os.Geteuid() {
		return api.Errorf(api.CodeAlreadyExists, "%s image %q: an image of that name exists", verb, name).WithHint("banger image rm %s", name)
	}
	return nil
}

func (d *deps) madeImage(image api.Image, err error, line *progress) error {
	if err != nil {
		return err
	}
	if line != nil {
		line.clear()
	}
	return d.made(image, image.Name, describeImage(image))
}

// remover is the command that removes images or kernels.
func remover(d *deps, short, example string, remove func(context.Context, string) error) *cobra.Command {
	c := command(d, "rm NAME...", short, example, cobra.MinimumNArgs(1), func(ctx context.Context, names []string) error {
		return each(d, names, func(name string) (string, any, error) {
			return name, gone{Name: name}, remove(ctx, name)
		})
	})
	c.Aliases = []string{"delete"}
	d.withJSON(c)
	d.withQuiet(c, "do not print their names")
	return c
}

// open opens FILE, or standard input for "-", as the user who calls.
func (d *deps) open(name, step string, line *progress) (io.Reader, func(), error) {
	if name == "-" {
		return &counter{Reader: d.stdin, line: line, step: step}, func() {}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, api.Errorf(api.CodeInvalid, "%s: %w", step, err).WithHint("name a file that you may read, or - for standard input")
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		f.Close()
		return nil, nil, api.Errorf(api.CodeInvalid, "%s: %s is a directory", step, name).WithHint("tar -C %s -c . | banger image import NAME -", name)
	}
	c := &counter{Reader: f, line: line, step: step}
	if err == nil && info.Mode().IsRegular() {
		c.total = info.Size()
	}
	return c, func() { f.Close() }, nil
}

// bootstrap makes the image name of a distribution, with more packages; the archive goes from
// mmdebstrap, which runs as the caller, straight to the daemon.
func (d *deps) bootstrap(ctx context.Context, distribution, name string, include []string) (api.Image, error) {
	if err := d.imageNameFree(ctx, "bootstrap", name); err != nil {
		return api.Image{}, err
	}
	line := newProgress(d, true)
	defer line.clear()
	step := "bootstrap " + distribution
	return piped(ctx, func(ctx context.Context, w io.Writer) error {
		return bootstrap.Run(ctx, distribution, include, w, &bootstrapLog{line: line, step: step})
	}, func(r io.Reader) (api.Image, error) {
		return d.client.ImportImage(ctx, name, &counter{Reader: r, line: line, step: step + ": import"})
	})
}

// piped imports what produce writes, while it does. An archive that breaks off is not
// imported. Of two errors the producer's tells more, unless it was only told to end.
func piped(ctx context.Context, produce func(context.Context, io.Writer) error, load func(io.Reader) (api.Image, error)) (api.Image, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	produced := make(chan error, 1)
	go func() {
		err := produce(ctx, w)
		w.CloseWithError(err)
		produced <- err
	}()
	image, err := load(r)
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		cancel()
	}
	perr := <-produced // it cleans up behind itself, also when all is well
	if err != nil && perr != nil && !errors.Is(perr, context.Canceled) && !errors.Is(perr, io.ErrClosedPipe) {
		err = perr
	}
	return image, err
}

// bootstrapLog makes progress of what mmdebstrap says it begins: "I: installing...".
type bootstrapLog struct {
	line *progress
	step string
	rest []byte
}

func (b *bootstrapLog) Write(text []byte) (int, error) {
	b.rest = append(b.rest, text...)
	for {
		said, rest, ok := bytes.Cut(b.rest, []byte("\n"))
		if !ok {
			if len(b.rest) > 4<<10 {
				b.rest = nil
			}
			return len(text), nil
		}
		b.rest = rest
		what, ok := strings.CutPrefix(strings.TrimSpace(string(said)), "I: ")
		if what, begins := strings.CutSuffix(what, "..."); ok && begins && !strings.Contains(what, "tempdir") && !strings.Contains(what, "signal") {
			b.line.report(api.Progress{Step: b.step + ": " + what})
		}
	}
}
