package kernel

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"banger/api"
)

// metaPackage is the package that always depends on the distribution's newest
// kernel for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

// pullPatience bounds a download.
const pullPatience = 20 * time.Minute

var imagePackage = regexp.MustCompile(`Depends: (linux-image-(\d\S*))`)

// Pull makes a bundle of the newest kernel for virtual machines that the host's own
// package manager offers. One that is there already is returned as it is.
func (m *Manager) Pull(ctx context.Context, report api.Reporter) (Kernel, error) {
	ctx, cancel := context.WithTimeout(ctx, pullPatience)
	defer cancel()
	if _, err := exec.LookPath("apt-get"); err != nil {
		return Kernel{}, api.Errorf(api.CodeUnsupported, "pull kernel: %w", err).WithHint("banger kernel import NAME FILE.deb")
	}
	report(api.Progress{Step: "find kernel"})
	out, err := apt(ctx, "", "apt-cache", "depends", metaPackage)
	if err != nil {
		return Kernel{}, err
	}
	found := imagePackage.FindSubmatch(out)
	if found == nil {
		return Kernel{}, api.Errorf(api.CodeUnavailable, "pull kernel: the package manager offers no %s", metaPackage).
			WithHint("apt-get update, or banger kernel import NAME FILE.deb")
	}
	pkg, release := string(found[1]), string(found[2])
	if k, err := m.Get(ctx, release); err == nil {
		return k, nil
	}
	return m.build(ctx, release, pkg, report, func(dir string) (io.ReadCloser, error) {
		report(api.Progress{Step: "download " + pkg})
		if _, err := apt(ctx, dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil || len(files) != 1 {
			return nil, api.Errorf(api.CodeUnavailable, "pull kernel: apt-get left %d packages", len(files))
		}
		return os.Open(files[0])
	})
}

// apt runs a program of the package manager in dir.
func apt(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "pull kernel: %s: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes())).
			WithHint("apt-get update, then try again")
	}
	return out, nil
}
