package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/hosttest"
)

// TestAptInstall installs a package in a VM from the distribution's own servers, as the
// image came with them: names and packets go through the machine's network.
func TestAptInstall(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.OnMachine(t)
	h.Must(t, "vm", "run", "--name", "a", "--", "true")
	in := func(script string) string { return h.Must(t, "vm", "exec", "a", "--", "sh", "-ec", script) }
	defer func() {
		h.Must(t, "vm", "delete", "--force", "a")
		nothingLeft(t, h)
	}()

	// A source, as mmdebstrap has written it: its first server and suite.
	source := in(`cat /etc/apt/sources.list.d/*.sources | awk '/^URIs:/ && !u {u=$2} /^Suites:/ && !s {s=$2} END {print u "/dists/" s "/InRelease"}'`)
	fetch := h.Enter(exec.Command("/usr/lib/apt/apt-helper", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10",
		"download-file", source, filepath.Join(t.TempDir(), "InRelease")))
	if out, err := fetch.CombinedOutput(); err != nil {
		t.Skipf("this host does not reach %s: %v: %s", source, err, out)
	}
	in(`apt-get -o Acquire::Languages=none -qq update
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends hello >/dev/null`)
	if got := in("hello"); !strings.HasPrefix(got, "Hello") {
		t.Errorf("the package's program said %q", got)
	}
}
