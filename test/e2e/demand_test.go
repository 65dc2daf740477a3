package e2e

import (
	"regexp"
	"strings"
	"testing"

	"banger/internal/bootstrap"
	"banger/internal/hosttest"
)

// On an installation that has nothing, the first run gets the kernel and the image
// of the host's own distribution; the second needs nothing.
func TestOnDemand(t *testing.T) {
	h := hosttest.New(t)
	distribution := bootstrap.Host()
	if distribution == "" {
		t.Skip("banger can make no image of this host's distribution")
	}
	args := []string{"vm", "run", "--rm", "--image", distribution, "--", "cat", "/etc/os-release"}
	r := h.Banger(t, args...)
	if r.Exit != 0 || !strings.Contains(r.Stdout, "ID="+distribution) {
		t.Fatalf("exit status %d, stdout %q\n%s", r.Exit, r.Stdout, r.Stderr)
	}
	for _, want := range []string{`(?m)^image ` + distribution + ` [0-9.]+MiB sha256:`, `(?m)^kernel \S+ [0-9.]+MiB$`} {
		if !regexp.MustCompile(want).MatchString(r.Stderr) {
			t.Errorf("standard error does not match %q:\n%s", want, r.Stderr)
		}
	}
	if r := h.Banger(t, args...); r.Exit != 0 || r.Stderr != "" {
		t.Errorf("the second time: exit status %d, stderr %q", r.Exit, r.Stderr)
	}
	h.CheckNothingLeft(t)
}
