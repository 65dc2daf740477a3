package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/failpoint"
)

// TestMain passes some points, in a process that the test has started for that.
func TestMain(m *testing.M) {
	points := os.Getenv("PASS")
	if points == "" {
		os.Exit(m.Run())
	}
	if err := failpoint.FromEnv(); err != nil {
		os.Exit(3)
	}
	for p := range strings.FieldsSeq(points) {
		subject, step, _ := strings.Cut(p, ".")
		if err := failpoint.Pass(subject, step); errors.Is(err, syscall.EBUSY) {
			os.Exit(2)
		}
		failpoint.Reach(subject, step+".reached")
	}
}

func TestFromEnv(t *testing.T) {
	for name, tc := range map[string]struct {
		armed string
		trace string // of passing a.b, c.d, a.b
		ends  string
	}{
		"disarmed":       {"", "a.b a.b.reached c.d c.d.reached a.b a.b.reached", "exit status 0"},
		"another":        {"b.a", "a.b a.b.reached c.d c.d.reached a.b a.b.reached", "exit status 0"},
		"at first":       {"a.b", "a.b", "signal: killed"},
		"at second":      {"a.b:2", "a.b a.b.reached c.d c.d.reached a.b", "signal: killed"},
		"third of any":   {"*:3", "a.b a.b.reached c.d", "signal: killed"},
		"reached":        {"c.d.reached", "a.b a.b.reached c.d c.d.reached", "signal: killed"},
		"error":          {"c.d=EBUSY", "a.b a.b.reached c.d", "exit status 2"},
		"second error":   {"a.b:2=EBUSY", "a.b a.b.reached c.d c.d.reached a.b", "exit status 2"},
		"other error":    {"c.d=EIO", "a.b a.b.reached c.d c.d.reached a.b a.b.reached", "exit status 0"},
		"no such error":  {"a.b=EWHAT", "", "exit status 3"},
		"no such number": {"a.b:0", "", "exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			trace := filepath.Join(t.TempDir(), "trace")
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "PASS=a.b c.d a.b", failpoint.Env+"="+tc.armed, failpoint.EnvTrace+"="+trace)
			_ = cmd.Run() // how it ended is looked at
			text, _ := os.ReadFile(trace)
			if got := strings.Join(strings.Fields(string(text)), " "); got != tc.trace || cmd.ProcessState.String() != tc.ends {
				t.Errorf("passed %q, %v; want %q, %s", got, cmd.ProcessState, tc.trace, tc.ends)
			}
		})
	}
}

func TestArm(t *testing.T) {
	if err := failpoint.Pass("a", "b"); err != nil {
		t.Error(err)
	}
	wanted := errors.New("wanted")
	failpoint.Arm(func(point string) error {
		if point == "a.b" {
			return wanted
		}
		return nil
	})
	defer failpoint.Arm(nil)
	if err := failpoint.Pass("a", "b"); err != wanted {
		t.Error(err)
	}
	if err := failpoint.Pass("a", "c"); err != nil {
		t.Error(err)
	}
	failpoint.Arm(nil)
	if allocations := testing.AllocsPerRun(100, func() { _ = failpoint.Pass("a", "b") }); allocations != 0 {
		t.Errorf("a disarmed point allocates %v times", allocations)
	}
}
