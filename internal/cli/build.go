package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/archive"
	"banger/internal/build"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
)

// buildFlags are the options of image build.
type buildFlags struct {
	tag, file, target, builder string
	args                       []string
	noCache                    bool
	provision
}

func (d *deps) buildCommand() *cobra.Command {
	var f buildFlags
	c := command(d, "build -t NAME DIR", "Make an image from a Dockerfile", "banger image build -t app .", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			image, err := d.build(ctx, args[0], f)
			return d.madeImage(image, err, nil)
		})
	c.Long = `Make an image from a Dockerfile, with the files of DIR that .dockerignore leaves.

A VM of yours does it, "` + defaultBuilder() + `", which is made when it is missing: nothing of the
Dockerfile runs on this host. What the build begins with (FROM, COPY --from) comes from
banger's own images, which are pulled if need be. The VM is stopped when nothing is built
in it; its work disk keeps the layers of earlier builds until you delete the VM.`
	fl := c.Flags()
	fl.StringVarP(&f.tag, "tag", "t", "", "`name` of the image; an image of yours that has it loses it")
	fl.StringVarP(&f.file, "file", "f", "", "`file` to take instead of DIR/Dockerfile; - for standard input")
	fl.StringVar(&f.target, "target", "", "`stage` to build, by name or number (default the last one)")
	fl.StringVar(&f.builder, "builder", defaultBuilder(), "`VM` that builds")
	fl.StringArrayVar(&f.args, "build-arg", nil, "`NAME=value` for an ARG of the Dockerfile; NAME alone takes yours; repeatable")
	fl.BoolVar(&f.noCache, "no-cache", false, "run every step, also one whose result an earlier build left")
	f.provision.add(c)
	c.PreRunE = func(*cobra.Command, []string) error { return f.check() }
	none := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveNoFileComp)
	completeFlag(c, "target", none)
	completeFlag(c, "build-arg", none)
	completeFlag(c, "tag", d.images)
	completeFlag(c, "builder", d.vms)
	c.ValidArgsFunction = first(cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs))
	d.withJSON(c)
	d.withQuiet(c, "do not show what the steps print, and of the image the name only")
	return c
}

func (f *buildFlags) check() error {
	if f.tag == "" {
		return api.Errorf(api.CodeInvalid, "build: no name for the image").WithHint("banger image build -t NAME DIR")
	}
	return f.provision.check()
}

// building is one run of image build.
type building struct {
	d          *deps
	f          buildFlags
	tag        name.Tag          // the name of the image, taken apart
	dir        string            // the context
	dockerfile string            // its path; empty for standard input
	text       []byte            // its content
	args       map[string]string // of --build-arg
	images     []build.Image     // that the Dockerfile refers to
	vm         string            // id of the builder
	home       string            // this build's directory in it
}

func (d *deps) build(ctx context.Context, dir string, f buildFlags) (api.Image, error) {
	tag, err := name.NewTag(f.tag)
	if err != nil {
		return api.Image{}, api.Errorf(api.CodeInvalid, "build: --tag %q: not a name of an image", f.tag).WithHint("it is like app or team/app:1.2")
	}
	b := &building{d: d, f: f, tag: tag, dir: dir}
	if err := b.read(); err != nil {
		return api.Image{}, err
	}
	for _, image := range b.images {
		if err := b.provide(ctx, image.Ref); err != nil {
			return api.Image{}, err
		}
	}
	var id [8]byte
	_, _ = rand.Read(id[:])
	b.home = builds + "/" + hex.EncodeToString(id[:])
	if err := b.enter(ctx); err != nil {
		return api.Image{}, err
	}
	image, err := b.run(ctx)
	if lerr := b.leave(context.WithoutCancel(ctx)); err == nil && lerr != nil {
		fmt.Fprintln(d.stderr, "banger: the image is made, but", api.AsError(lerr).Message)
	}
	return image, err
}

// read reads the Dockerfile and looks at the context, before anything is begun.
func (b *building) read() error {
	info, err := os.Stat(b.dir)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "build: %w", err).WithHint("name the directory whose files the build may use")
	}
	if !info.IsDir() {
		return api.Errorf(api.CodeInvalid, "build: %s is not a directory", b.dir).WithHint("name the directory whose files the build may use")
	}
	var r io.Reader = b.d.stdin
	label := "standard input"
	if b.f.file != "-" {
		b.dockerfile = cmp.Or(b.f.file, filepath.Join(b.dir, "Dockerfile"))
		if b.f.file == "" {
			if _, err := os.Stat(b.dockerfile); errors.Is(err, fs.ErrNotExist) {
				b.dockerfile = filepath.Join(b.dir, "Containerfile")
				if _, err := os.Stat(b.dockerfile); errors.Is(err, fs.ErrNotExist) {
					return api.Errorf(api.CodeInvalid, "build: no Dockerfile in %s", b.dir).WithHint("-f names one that is elsewhere")
				}
			}
		}
		f, err := os.Open(b.dockerfile)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "build: %w", err)
		}
		defer f.Close()
		r, label = f, b.dockerfile
	}
	if b.text, err = io.ReadAll(io.LimitReader(r, build.MaxDockerfile+1)); err != nil {
		return api.Errorf(api.CodeInvalid, "build: read %s: %w", label, err)
	}
	if len(b.text) > build.MaxDockerfile {
		return api.Errorf(api.CodeInvalid, "build: %s has more than %d bytes", label, build.MaxDockerfile)
	}
	if b.args, err = build.Arguments(b.f.args, os.LookupEnv); err != nil {
		return err
	}
	b.images, err = build.Images(label, b.text, b.args, b.f.target)
	return err
}

// provide sees to it that an image that the build needs is here.
func (b *building) provide(ctx context.Context, ref string) error {
	if b.f.pull == pullAlways {
		if err := b.d.renew(ctx, ref); err != nil {
			return err
		}
	}
	_, err := b.d.client.Image(ctx, ref)
	if api.CodeOf(err) != api.CodeNotFound || b.f.pull == pullNever {
		return err
	}
	_, err = b.d.provide(ctx, &api.Error{Code: api.CodeNotFound, Message: api.AsError(err).Message, Object: "image/" + ref})
	return err
}

// run builds and imports what came of it.
func (b *building) run(ctx context.Context) (api.Image, error) {
	var contexts []string
	for _, image := range b.images {
		local, err := b.send(ctx, image.Ref)
		if err != nil {
			return api.Image{}, err
		}
		contexts = append(contexts, "--build-context="+image.Written+"=container-image://"+local)
	}
	if err := b.sendContext(ctx); err != nil {
		return api.Image{}, err
	}
	command := buildah("build", "--isolation=chroot", "--format=docker", "--layers", "--pull=never", "--network=host",
		"--file="+b.home+"/Dockerfile", "--tag="+b.result())
	for _, name := range slices.Sorted(maps.Keys(b.args)) {
		command = append(command, "--build-arg="+name+"="+b.args[name])
	}
	if b.f.target != "" {
		command = append(command, "--target="+b.f.target)
	}
	if b.f.noCache {
		command = append(command, "--no-cache")
	}
	command = append(append(command, contexts...), b.home+"/context")
	if err := b.show(ctx, command); err != nil {
		return api.Image{}, err
	}
	return b.fetch(ctx)
}

// result is what the built image is called in the builder. The name lasts: what an image
// of that name was made of is what the next build of it can use again.
func (b *building) result() string {
	return "localhost/banger/" + b.tag.RepositoryStr() + ":" + b.tag.TagStr()
}

// sendContext gives the builder the Dockerfile and the files of the context.
func (b *building) sendContext(ctx context.Context) error {
	ignored, err := build.Ignored(b.dir, b.dockerfile)
	if err != nil {
		return err
	}
	if err := b.quiet(ctx, strings.NewReader(string(b.text)), nil, "sh", "-c", `cat >"$1"`, "-", b.home+"/Dockerfile"); err != nil {
		return err
	}
	r := archived("build", b.dir, archive.WriteOptions{Name: "context", Follow: true, Skip: ignored})
	defer r.Close()
	line := newProgress(b.d, true)
	defer line.clear()
	return b.d.client.WriteFiles(ctx, b.vm, api.WriteFiles{Path: b.home}, &counter{Reader: r, line: line, step: "send " + b.dir})
}

// send gives the builder one of banger's images, unless it has it, and returns what it is
// called there.
func (b *building) send(ctx context.Context, ref string) (string, error) {
	image, err := b.d.client.Image(ctx, ref)
	if err != nil {
		return "", err
	}
	local := "localhost/banger-base:" + strings.TrimPrefix(image.ID, "sha256:")
	if b.quiet(ctx, nil, nil, buildah("inspect", "--type=image", local)...) == nil {
		return local, nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	archive, err := b.d.client.ExportImage(ctx, fmt.Sprintf("%s@%d", image.Name, image.Owner))
	if err != nil {
		return "", err
	}
	defer archive.Close()
	line := newProgress(b.d, true)
	defer line.clear()
	file := b.home + "/base.tar"
	script := `cat >"$1" && shift && "$@"; status=$?; rm -f "` + file + `"; exit $status`
	pull := append([]string{"sh", "-c", script, "-", file}, buildah("pull", "--quiet", "oci-archive:"+file)...)
	var out strings.Builder
	if err := b.quiet(ctx, &counter{Reader: archive, line: line, step: "send image " + ref}, &out, pull...); err != nil {
		return "", err
	}
	lines := strings.Fields(out.String())
	if len(lines) == 0 {
		return "", api.Errorf(api.CodeGuest, "build: the builder does not say what became of image %s", ref)
	}
	return local, b.quiet(ctx, nil, nil, buildah("tag", lines[len(lines)-1], local)...)
}

// fetch imports the image that was built.
func (b *building) fetch(ctx context.Context) (api.Image, error) {
	file := b.home + "/image.tar"
	if err := b.quiet(ctx, nil, nil, buildah("push", "--quiet", b.result(), "docker-archive:"+file)...); err != nil {
		return api.Image{}, err
	}
	line := newProgress(b.d, true)
	defer line.clear()
	return piped(ctx, func(ctx context.Context, w io.Writer) error { return b.quiet(ctx, nil, w, "cat", file) },
		func(r io.Reader) (api.Image, error) {
			return b.d.client.ReplaceImage(ctx, b.f.tag, &counter{Reader: r, line: line, step: "import " + b.f.tag})
		})
}
