// Package bootstrap makes the root file system of the host's own distribution, as
// a tar archive, from the package sources that the host itself trusts. It runs in
// the CLI, as the user.
package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

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

// Run writes the archive of the distribution called name to stdout, and what
// mmdebstrap says to logs. Only the host's own distribution can be made: another
// is unsupported; a missing mmdebstrap is unavailable.
func Run(ctx context.Context, name string, stdout, logs io.Writer) error {
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
	return bootstrap(ctx, host["VERSION_CODENAME"], stdout, logs)
}

// Debian is Run for Debian.
func Debian(ctx context.Context, stdout, logs io.Writer) error {
	return Run(ctx, "debian", stdout, logs)
}

func bootstrap(ctx context.Context, codename string, stdout, logs io.Writer) error {
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "bootstrap %s: mmdebstrap is not installed", codename).WithHint("apt-get install mmdebstrap")
	}
	stanzas, err := hostSources("/etc/apt", codename)
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", codename, err)
	}
	if len(stanzas) == 0 {
		return api.Errorf(api.CodeUnsupported, "bootstrap %s: no package source of it below /etc/apt", codename).
			WithHint("add one with the suite %s and the component main", codename)
	}
	file, err := os.CreateTemp("", "banger-*.sources")
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", codename, err)
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(strings.Join(stanzas, "\n"))
	if err := errors.Join(err, file.Chmod(0o644), file.Close()); err != nil {
		return fmt.Errorf("bootstrap %s: %w", codename, err)
	}
	mode := "unshare"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	cmd := exec.CommandContext(ctx, tool, "--mode="+mode, "--variant=minbase", "--format=tar",
		"--include=ca-certificates,iproute2,procps,less", codename, "-", file.Name())
	var tail bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, io.MultiWriter(logs, &tail)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes its directory
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(tail.String()), "\n")
		return api.Errorf(api.CodeUnavailable, "bootstrap %s: mmdebstrap: %w: %s", codename, err, lines[len(lines)-1])
	}
	return nil
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
