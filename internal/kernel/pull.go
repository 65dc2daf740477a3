package kernel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"banger/api"
)

// metaPackages always depend on the distribution's newest kernel for virtual
// machines: Debian's, Ubuntu's.
var metaPackages = []string{"linux-image-cloud-amd64", "linux-image-virtual"}

const (
	pullPatience = 20 * time.Minute // bounds a download
	askPatience  = time.Minute      // and a question to the package manager
)

var (
	imagePackage = regexp.MustCompile(`(?m)^\s+(?:Pre)?Depends: (linux-image-(\d\S*))$`)
	// partPackage is what an image comes without where its distribution splits it, as
	// Ubuntu does.
	partPackage = regexp.MustCompile(`(?m)^\s+(?:Pre)?Depends: (linux-(?:modules|binary)-\d\S*)$`)
	version     = regexp.MustCompile(`(?m)^Version: (\S+)$`)
)

// offer is a kernel as the package manager offers it. A rebuilt package has the same
// release and another version.
type offer struct{ pkg, release, version string }

// source is how apt-get names the one version, and how a bundle remembers it.
func (o offer) source() string { return o.pkg + "=" + o.version }

// Pull makes a bundle of the newest kernel for virtual machines that the host's own
// package manager offers. One of the same package and version that is there already is
// returned as it is. Of several pulls at once, one works and the others wait for it.
func (m *Manager) Pull(ctx context.Context, report api.Reporter) (Kernel, error) {
	ctx, cancel := context.WithTimeout(ctx, pullPatience)
	defer cancel()
	if _, err := exec.LookPath("apt-get"); err != nil {
		return Kernel{}, api.Errorf(api.CodeUnsupported, "pull kernel: %w", err).WithHint("banger kernel import NAME FILE.deb")
	}
	report(api.Progress{Step: "find kernel"})
	select {
	case m.pulling <- struct{}{}:
		defer func() { <-m.pulling }()
	case <-ctx.Done():
		return Kernel{}, fmt.Errorf("pull kernel: wait for another pull: %w", context.Cause(ctx))
	}
	o, err := newest(ctx, apt)
	if err != nil {
		return Kernel{}, err
	}
	name, made, err := m.nameFor(ctx, o)
	if err != nil {
		return Kernel{}, err
	}
	if made != nil {
		return *made, nil
	}
	return m.build(ctx, name, o.source(), report, func(ctx context.Context, dir string) ([]io.ReadCloser, error) {
		report(api.Progress{Step: "download " + o.pkg})
		return download(ctx, o, dir)
	})
}

// Offered says what Pull would get, and which bundle that is already.
func (m *Manager) Offered(ctx context.Context) (api.KernelOffer, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	if _, err := exec.LookPath("apt-cache"); err != nil {
		return api.KernelOffer{}, api.Errorf(api.CodeUnsupported, "look for a newer kernel: %w", err).WithHint("banger kernel import NAME FILE.deb")
	}
	o, err := newest(ctx, apt)
	if err != nil {
		return api.KernelOffer{}, err
	}
	_, made, err := m.nameFor(ctx, o)
	if err != nil {
		return api.KernelOffer{}, err
	}
	offer := api.KernelOffer{Package: o.pkg, Release: o.release, Version: o.version}
	if made != nil {
		offer.Kernel = made.Name
	}
	return offer, nil
}

// nameFor returns the bundle that was made of an offer, or else a name for it: the
// release, with the version behind it where another build has taken that.
func (m *Manager) nameFor(ctx context.Context, o offer) (name string, made *Kernel, err error) {
	kernels, err := m.Store.Kernels(ctx)
	if err != nil {
		return "", nil, err
	}
	name = o.release
	for _, k := range kernels {
		if k.Source == o.source() {
			return "", &k, nil
		}
		if k.Name == o.release {
			name = o.release + "+" + strings.NewReplacer(":", ".", "~", ".").Replace(o.version)
		}
	}
	return name, nil, nil
}

// runner runs a program of the package manager in dir.
type runner func(ctx context.Context, dir, program string, args ...string) ([]byte, error)

// newest asks the package manager for the package of the newest kernel.
func newest(ctx context.Context, run runner) (offer, error) {
	for _, meta := range metaPackages {
		out, err := run(ctx, "", "apt-cache", "depends", meta)
		if ctx.Err() != nil {
			return offer{}, err
		}
		found := imagePackage.FindSubmatch(out)
		if found == nil {
			continue // it is another distribution's
		}
		o := offer{pkg: string(found[1]), release: string(found[2])}
		out, err = run(ctx, "", "apt-cache", "show", "--no-all-versions", o.pkg)
		if err != nil {
			return offer{}, err
		}
		if found = version.FindSubmatch(out); found == nil {
			return offer{}, api.Errorf(api.CodeUnavailable, "pull kernel: apt-cache gives no version of %s", o.pkg).WithHint("apt-get update, then try again")
		}
		o.version = string(found[1])
		return o, nil
	}
	return offer{}, api.Errorf(api.CodeUnavailable, "pull kernel: the package manager offers no %s", strings.Join(metaPackages, " and no ")).
		WithHint("apt-get update, or banger kernel import NAME FILE.deb")
}

// parts returns what apt-get is to download of an offer: the image, and the packages of
// its modules where it has them apart.
func parts(ctx context.Context, o offer, run runner) ([]string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", o.pkg)
	if err != nil {
		return nil, err
	}
	packages := []string{o.source()}
	for _, found := range partPackage.FindAllSubmatch(out, -1) {
		packages = append(packages, string(found[1]))
	}
	return packages, nil
}

// download fetches the packages of an offer into dir.
func download(ctx context.Context, o offer, dir string) (opened []io.ReadCloser, err error) {
	packages, err := parts(ctx, o, apt)
	if err != nil {
		return nil, err
	}
	args := append([]string{"-q", "-o", "APT::Sandbox::User=root", "download"}, packages...)
	if _, err := apt(ctx, dir, "apt-get", args...); err != nil {
		return nil, err
	}
	return openAll(dir)
}

// openAll opens the packages in dir.
func openAll(dir string) (opened []io.ReadCloser, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) == 0 {
		return nil, api.Errorf(api.CodeUnavailable, "pull kernel: apt-get left no package")
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return opened, err
		}
		opened = append(opened, f)
	}
	return opened, nil
}

// oneLine is what a program printed, as a part of an error message.
func oneLine(out []byte) string { return strings.Join(strings.Fields(string(out)), " ") }

// apt runs a program of the package manager in dir.
func apt(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.WaitDelay = 5 * time.Second // its helpers hold the pipe of stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "pull kernel: %s: %w: %s", program, err, oneLine(stderr.Bytes())).
			WithHint("apt-get update, then try again")
	}
	return out, nil
}
