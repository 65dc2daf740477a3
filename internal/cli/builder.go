package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"banger/api"
	"banger/client"
	"banger/internal/bootstrap"
)

// The builder is a VM like any other, of the user who builds: hostile Dockerfiles meet its
// kernel, its disk and its network, and nothing of the host's. banger gives it what the
// build begins with, so that no credentials go into it.
const (
	builderImage  = "banger-builder"
	builderMemory = 2 << 30
	builderDisk   = 20 << 30

	// builds has a directory for each build; its existence says that somebody builds.
	builds = "/root/builds"
	// abandoned is after how many minutes a build is one whose command line died.
	abandoned = "1440"
)

// defaultBuilder is the name of the caller's builder. Names are the installation's.
func defaultBuilder() string {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Sprintf("builder-%d", uid)
	}
	return "builder"
}

// buildah is how the builder's program is called; its store is on the work disk.
func buildah(args ...string) []string {
	return append([]string{"buildah", "--root=/root/store", "--runroot=/run/buildah", "--storage-driver=overlay"}, args...)
}

// builderPackages are those of the builder's image, of Debian and Ubuntu.
var builderPackages = []string{"buildah", "ca-certificates"}

// enterScript makes the directory of a build, and removes what must be left of builds whose
// command line was killed. When the store takes most of the disk, what no image needs goes.
const enterScript = `set -e
mkdir -p ` + builds + `
find ` + builds + ` -mindepth 1 -maxdepth 1 -mmin +` + abandoned + ` -exec rm -rf {} +
used=$(df --output=pcent /root | tail -n 1 | tr -dc 0-9)
home=$1; shift
if [ "$used" -gt 80 ]; then "$@" >/dev/null 2>&1 || true; fi
mkdir "$home"`

// enter starts the builder, made if need be, and makes this build's directory in it.
func (b *building) enter(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		if err := b.start(ctx); err != nil {
			return err
		}
		script := append([]string{"sh", "-c", enterScript, "-", b.home}, buildah("rmi", "--prune", "--force")...)
		err := b.quiet(ctx, nil, nil, script...)
		// A build that has ended meanwhile may have stopped it.
		if code := api.CodeOf(err); err == nil || attempt == 3 || code != api.CodeConflict && code != api.CodeUnavailable {
			return err
		}
	}
}

// start sees to it that the builder runs.
func (b *building) start(ctx context.Context) error {
	d := b.d
	vm, err := d.client.VM(ctx, b.f.builder)
	if api.CodeOf(err) == api.CodeNotFound {
		return b.create(ctx)
	}
	if err != nil {
		return err
	}
	b.vm = vm.ID
	if vm.State == api.VMRunning {
		return nil
	}
	op, err := d.client.StartVM(ctx, vm.ID)
	if api.CodeOf(err) == api.CodeConflict { // somebody else starts or stops it
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
		return nil
	}
	_, err = d.operate(ctx, op, err)
	return err
}

func (b *building) create(ctx context.Context) error {
	d := b.d
	if _, err := d.client.Image(ctx, builderImage); api.CodeOf(err) == api.CodeNotFound {
		host := bootstrap.Host()
		if host == "" {
			return api.Errorf(api.CodeUnsupported, "build: no image %q, and none can be made of this host's distribution", builderImage).
				WithHint("import one of Debian or Ubuntu in which the package buildah is installed under that name")
		}
		if _, err := d.bootstrap(ctx, host, builderImage, builderPackages); err != nil && api.CodeOf(err) != api.CodeAlreadyExists {
			return err
		}
	} else if err != nil {
		return err
	}
	disk := int64(builderDisk)
	vm, op, err := d.create(ctx, api.CreateVM{Name: b.f.builder, Image: builderImage, CPUs: min(4, runtime.NumCPU()), Memory: builderMemory,
		DiskSize: &disk, Start: true}, provision{pull: pullMissing})
	if err != nil {
		return err
	}
	b.vm = vm.ID
	_, err = d.operate(ctx, op, nil)
	return err
}

// leave removes the build's directory, and stops the builder if nobody else builds.
func (b *building) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cancelPatience)
	defer cancel()
	if err := b.quiet(ctx, nil, nil, "rm", "-rf", b.home); err != nil {
		return err
	}
	if b.quiet(ctx, nil, nil, "rmdir", builds) != nil {
		return nil // others build
	}
	op, err := b.d.client.StopVM(ctx, b.vm, api.StopVM{})
	if err != nil {
		return err
	}
	_, err = b.d.client.Wait(ctx, op.ID, nil)
	return err
}

// show runs a step whose output is for the user.
func (b *building) show(ctx context.Context, command []string) error {
	if b.d.quiet {
		return b.quiet(ctx, nil, nil, command...)
	}
	status, err := b.exec(ctx, client.ExecOptions{Command: command, Stdout: b.d.stderr, Stderr: b.d.stderr})
	if err == nil && status != 0 {
		return api.Errorf(api.CodeGuest, "build %s: the builder ended with exit status %d", b.f.tag, status).
			WithHint("what it said is above")
	}
	return err
}

// quiet runs a step whose output is no one's, unless it fails.
func (b *building) quiet(ctx context.Context, stdin io.Reader, stdout io.Writer, command ...string) error {
	var said tail
	o := client.ExecOptions{Command: command, Stdin: stdin, Stdout: stdout, Stderr: &said}
	if stdout == nil {
		o.Stdout = &said
	}
	status, err := b.exec(ctx, o)
	if err == nil && status != 0 {
		return api.Errorf(api.CodeGuest, "build %s: %s in the builder: %s", b.f.tag, command[0], said.last())
	}
	return err
}

// exec runs a command in the builder and returns its exit status. When ctx ends, the
// command is ended too.
func (b *building) exec(ctx context.Context, o client.ExecOptions) (int, error) {
	signals := make(chan string, 2)
	over := make(chan struct{})
	defer close(over)
	stop := context.AfterFunc(ctx, func() {
		signals <- "TERM"
		select {
		case <-over:
		case <-time.After(cancelPatience / 3):
			signals <- "KILL"
		}
	})
	defer stop()
	o.Signals, o.Reconnect = signals, b.d.connect
	status, err := b.d.client.Exec(context.WithoutCancel(ctx), b.vm, o)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, err
	case status.Signal != "":
		return 0, api.Errorf(api.CodeGuest, "build %s: %s in the builder was ended by %s", b.f.tag, o.Command[0], status.Signal).
			WithHint("if its memory does not suffice: banger vm set --memory 4G %s", b.f.builder)
	}
	return status.Code, nil
}

// tail keeps the end of what was written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-4<<10):]
	return len(p), nil
}

// last is the last line, which says why.
func (t *tail) last() string {
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	return strings.TrimSpace(printable(string(lines[len(lines)-1])))
}
