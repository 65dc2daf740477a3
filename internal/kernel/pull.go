package kernel

import (
	"bytes"
	"context"
	"errors"
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

// pullPatience bounds a download.
const pullPatience = 20 * time.Minute

var (
	imagePackage   = regexp.MustCompile(`Depends: (linux-image-(\d\S*))`)
	modulesPackage = regexp.MustCompile(`Depends: (linux-modules-\d\S*)`) // where the image comes without, as Ubuntu's
)

// Pull makes a bundle of the newest kernel for virtual machines that the host's own
// package manager offers. One that is there already is returned as it is.
func (m *Manager) Pull(ctx context.Context, report api.Reporter) (Kernel, error) {
	ctx, cancel := context.WithTimeout(ctx, pullPatience)
	defer cancel()
	if _, err := exec.LookPath("apt-get"); err != nil {
		return Kernel{}, api.Errorf(api.CodeUnsupported, "pull kernel: %w", err).WithHint("banger kernel import NAME FILE.deb")
	}
	report(api.Progress{Step: "find kernel"})
	pkg, release, err := newestImage(ctx)
	if err != nil {
		return Kernel{}, err
	}
	if k, err := m.Get(ctx, release); err == nil {
		return k, nil
	}
	return m.build(ctx, release, pkg, report, func(ctx context.Context, dir string) ([]io.ReadCloser, error) {
		report(api.Progress{Step: "download " + pkg})
		return download(ctx, pkg, dir)
	})
}

// newestImage asks the package manager for the package of the newest kernel.
func newestImage(ctx context.Context) (pkg, release string, err error) {
	for _, meta := range metaPackages {
		out, aptErr := apt(ctx, "", "apt-cache", "depends", meta)
		if found := imagePackage.FindSubmatch(out); found != nil {
			return string(found[1]), string(found[2]), nil
		}
		err = errors.Join(err, aptErr)
	}
	if ctx.Err() != nil {
		return "", "", err
	}
	return "", "", api.Errorf(api.CodeUnavailable, "pull kernel: the package manager offers no %s", strings.Join(metaPackages, " and no ")).
		WithHint("apt-get update, or banger kernel import NAME FILE.deb")
}

// download fetches pkg into dir, and the package of its modules if it has one.
func download(ctx context.Context, pkg, dir string) (opened []io.ReadCloser, err error) {
	out, err := apt(ctx, "", "apt-cache", "depends", pkg)
	if err != nil {
		return nil, err
	}
	args := []string{"-q", "-o", "APT::Sandbox::User=root", "download", pkg}
	if found := modulesPackage.FindSubmatch(out); found != nil {
		args = append(args, string(found[1]))
	}
	if _, err := apt(ctx, dir, "apt-get", args...); err != nil {
		return nil, err
	}
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
