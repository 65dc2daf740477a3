package client_test

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// socketVariable names the socket of the daemon that the examples talk to.
const socketVariable = "BANGER_TEST_EXAMPLE_SOCKET"

// TestMain has the examples run only where TestExamples has made a daemon for them.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(socketVariable) != "" {
		os.Exit(m.Run()) // by TestExamples, whose network this is
	}
	if skip := flag.Lookup("test.skip").Value; skip.String() == "" {
		if err := skip.Set("^Example"); err != nil {
			panic(err)
		}
	}
	hosttest.Main(m)
}

// TestExamples runs the examples on an installation of their own; nothing is left.
func TestExamples(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "list") // starts the daemon
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^Example", "-test.v")
	cmd.Env = append(os.Environ(), socketVariable+"="+h.Paths.Socket())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, example := range regexp.MustCompile(`(?m)^func (Example\w*)\(`).FindAllStringSubmatch(string(source), -1) {
		if !strings.Contains(string(out), "--- PASS: "+example[1]+" ") {
			t.Errorf("%s did not run:\n%s", example[1], out)
		}
	}
	h.CheckNothingLeft(t)
}
