package e2e

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command lines of testdata/*.txtar, each file on an
// installation of its own.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			h := hosttest.NewSeeded(t)
			t.Run("script", func(t *testing.T) { // returns when all of it has ended
				testscript.Run(t, testscript.Params{
					Files:               []string{file},
					RequireUniqueNames:  true,
					RequireExplicitExec: true,
					Setup: func(env *testscript.Env) error {
						env.Vars = append(append(env.Vars, h.Env()...), "BANGER="+h.Program()) // for what sh runs
						return nil
					},
					Cmds: map[string]func(*testscript.TestScript, bool, []string){"banger": banger(h), "refused": refuses(h)},
				})
			})
			nothingLeft(t, h)
		})
	}
}

// banger is the command `banger [-N] ARGS...`: the exit status must be N, or 0.
func banger(h *hosttest.Host) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		want := 0
		if len(args) > 0 {
			if n, err := strconv.Atoi(strings.TrimPrefix(args[0], "-")); err == nil && args[0][0] == '-' {
				want, args = n, args[1:]
			}
		}
		if neg {
			ts.Fatalf("! banger: give the exit status, banger -N")
		}
		if got := status(ts, ts.Exec(h.Program(), args...)); got != want {
			ts.Fatalf("exit status %d, want %d", got, want)
		}
	}
}

// refuses is the command `refused CODE ARGS...`: banger ends with the code's
// status, having said nothing but one line and the next step.
func refuses(h *hosttest.Host) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		want := api.Code(args[0]).ExitStatus()
		if got := status(ts, ts.Exec(h.Program(), args[1:]...)); got != want {
			ts.Fatalf("exit status %d, want %d", got, want)
		}
		said := strings.Split(ts.ReadFile("stderr"), "\n")
		if len(said) != 3 || !strings.HasPrefix(said[0], "banger: ") || !strings.HasPrefix(said[1], "hint: ") {
			ts.Fatalf("not one line and the next step: %q", said)
		}
		if slices.ContainsFunc([]string{"failed to", "unable to"}, func(s string) bool { return strings.Contains(said[0], s) }) {
			ts.Fatalf("an error does not say that it failed: %s", said[0])
		}
		if out := ts.ReadFile("stdout"); out != "" {
			ts.Fatalf("an error that writes to stdout: %q", out)
		}
	}
}

func status(ts *testscript.TestScript, err error) int {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		ts.Fatalf("%v", err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}
