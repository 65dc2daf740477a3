// Package bootstrap makes the root file system of the host's own distribution, as
// a tar archive, from the package sources that the host itself trusts. It runs in
// the CLI, as the user.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"banger/api"
)

// Names returns the distributions that Run knows.
func Names() []string { return []string{"debian", "ubuntu"} }

// Host returns which of them the host runs, "" where it runs another.
func Host() string {
	host, err := hostRelease()
	if err != nil || host["VERSION_CODENAME"] == "" || !slices.Contains(Names(), host["ID"]) {
		return ""
	}
	return host["ID"]
}

// hostRelease reads os-release(5).
func hostRelease() (map[string]string, error) {
	text, err := os.ReadFile("/etc/os-release")
	return parseRelease(string(text)), err
}

// packages are what every image has besides the distribution's minimum.
var packages = []string{"ca-certificates", "iproute2", "procps", "less"}

// validPackage is what Debian's policy, 5.6.7, has a package be called.
var validPackage = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// Run writes the archive of the distribution called name, with the packages include
// and what they depend on, to stdout, and what mmdebstrap says to logs. Only the
// host's own distribution can be made: another is unsupported. What cannot be a
// package's name is invalid. A missing mmdebstrap, sources that cannot be reached and
// packages that they lack are unavailable; a full disk is no_space.
func Run(ctx context.Context, name string, include []string, stdout, logs io.Writer) error {
	if !slices.Contains(Names(), name) {
		return api.Errorf(api.CodeUnsupported, "bootstrap %q: not a known distribution", name).WithHint("known are %s", strings.Join(Names(), " and "))
	}
	host, err := hostRelease()
	if err != nil {
		return api.Errorf(api.CodeUnsupported, "bootstrap %s: %w", name, err)
	}
	if host["ID"] != name || host["VERSION_CODENAME"] == "" {
		return api.Errorf(api.CodeUnsupported, "bootstrap %s: this host runs %q, and only its own distribution can be made", name, host["ID"]).
			WithHint("import a tar archive instead")
	}
	for _, p := range include {
		if !validPackage.MatchString(p) {
			return api.Errorf(api.CodeInvalid, "bootstrap %s: %q is not a package's name", name, p).WithHint("apt-cache search finds packages")
		}
	}
	return bootstrap(ctx, host, include, stdout, logs)
}

func bootstrap(ctx context.Context, host map[string]string, include []string, stdout, logs io.Writer) error {
	codename := host["VERSION_CODENAME"]
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "bootstrap %s: mmdebstrap is not installed", codename).WithHint("apt-get install mmdebstrap")
	}
	suite, stanzas, err := hostSources("/etc/apt", host)
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", codename, err)
	}
	if len(stanzas) == 0 {
		return api.Errorf(api.CodeUnsupported, "bootstrap %s: no package source of it below /etc/apt", codename).
			WithHint("add one with the suite %s and the component main", codename)
	}
	mode := "unshare"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	cmd := exec.CommandContext(ctx, tool, "--mode="+mode, "--variant=minbase", "--format=tar",
		`--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"`, // of this host, not of the image
		"--include="+strings.Join(slices.Concat(packages, include), ","), suite, "-", "-")
	cmd.Stdin = strings.NewReader(strings.Join(stanzas, "\n"))
	var tail tailWriter
	cmd.Stdout, cmd.Stderr = stdout, io.MultiWriter(logs, &tail)
	// A process group of its own: all of it is told to end, as by Ctrl-C, and removes
	// its directory; and mmdebstrap, which then signals its whole group, does not end
	// the caller of ours.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.Env = append(os.Environ(), "LC_ALL=C") // for failure to read
	if err := cmd.Run(); err != nil {
		return failure(ctx, codename, tail.lines(), fmt.Errorf("mmdebstrap: %w", err))
	}
	return nil
}

// failure gives an error its code. What mmdebstrap ran into is in what it said alone.
func failure(ctx context.Context, codename string, said []string, err error) error {
	reason := ""
	for _, line := range said {
		full := strings.Contains(line, syscall.ENOSPC.Error()) || strings.Contains(line, "No space left on device") ||
			strings.Contains(line, "enough free space")
		if full {
			err = syscall.ENOSPC
		}
		// The first error is the cause; the later ones tell what came of it.
		if problem, ok := strings.CutPrefix(line, "E: "); ok && reason == "" || full {
			reason = ": " + problem
		}
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("bootstrap %s: %w", codename, context.Cause(ctx))
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.CodeNoSpace, "bootstrap %s: %w%s", codename, err, reason).
			WithHint("free some space in %s, or set TMPDIR to a directory that has 1 GiB", os.TempDir())
	}
	return api.Errorf(api.CodeUnavailable, "bootstrap %s: %w%s", codename, err, reason).
		WithHint("see whether apt-get update succeeds on this host")
}

// tailWriter keeps the last bytes that were written to it.
type tailWriter struct{ b []byte }

const tailSize = 64 << 10

func (t *tailWriter) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-tailSize):]
	return len(p), nil
}

// lines are the last lines, without their ends.
func (t *tailWriter) lines() []string {
	return strings.FieldsFunc(string(t.b), func(r rune) bool { return r == '\n' || r == '\r' })
}

func parseRelease(text string) map[string]string {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			vars[key] = strings.Trim(value, `"'`)
		}
	}
	return vars
}
