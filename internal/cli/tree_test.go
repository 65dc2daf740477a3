package cli

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/client"
	"banger/internal/config"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// without is a command line on an installation that has no daemon.
func without(t *testing.T) (d *deps, stdout, stderr *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	paths := config.Paths{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), Config: filepath.Join(dir, "config")}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return &deps{
		client: client.New(paths.Socket()), paths: paths, version: "test",
		stdin: strings.NewReader(""), stdout: stdout, stderr: stderr, signals: newInterrupts(context.Background()),
	}, stdout, stderr
}

// commands yields every command of the tree.
func commands(yield func(*cobra.Command) bool, c *cobra.Command) bool {
	if !yield(c) {
		return false
	}
	for _, sub := range c.Commands() {
		if !commands(yield, sub) {
			return false
		}
	}
	return true
}

// Every command says what it is for and shows an example that is a command line of
// its own; every flag says what it does.
func TestEveryCommandIsExplained(t *testing.T) {
	d, _, _ := without(t)
	seen := 0
	commands(func(c *cobra.Command) bool {
		seen++
		path := c.CommandPath()
		switch {
		case c.Short == "":
			t.Errorf("%s: says nothing about itself", path)
		case !strings.Contains(c.Example, path):
			if c.Name() != "help" && c.Name() != "banger" {
				t.Errorf("%s: its example is %q", path, c.Example)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: the flag --%s says nothing about itself", path, f.Name)
			}
		})
		return true
	}, newRoot(d))
	if seen < 20 {
		t.Errorf("the tree has %d commands", seen)
	}
}

// Every flag that takes a value completes it with something, be it nothing; so the
// names of files are not offered where none are wanted.
func TestEveryValueIsCompleted(t *testing.T) {
	files := []string{"env-file"}
	d, _, _ := without(t)
	commands(func(c *cobra.Command) bool {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() == "bool" || slices.Contains(files, f.Name) {
				return
			}
			if _, ok := c.GetFlagCompletionFunc(f.Name); !ok {
				t.Errorf("%s: --%s is not completed", c.CommandPath(), f.Name)
			}
		})
		return true
	}, newRoot(d))
}

// Lists and shows can be read by programs.
func TestListsAndShowsHaveJSON(t *testing.T) {
	d, _, _ := without(t)
	commands(func(c *cobra.Command) bool {
		if c.Name() == "list" || c.Name() == "show" || c.Name() == "status" {
			for _, flag := range []string{"json", "quiet"} {
				if c.Flags().Lookup(flag) == nil {
					t.Errorf("%s: has no --%s", c.CommandPath(), flag)
				}
			}
		}
		return true
	}, newRoot(d))
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		d, stdout, stderr := without(t)
		if status := run(d, []string{"completion", shell}); status != 0 || !strings.Contains(stdout.String(), "banger") || stderr.Len() > 0 {
			t.Errorf("%s: status %d, %d bytes, stderr %q", shell, status, stdout.Len(), stderr)
		}
	}
}

// Without a daemon there is nothing to complete, and none is started for it.
func TestCompletionStartsNoDaemon(t *testing.T) {
	d, stdout, _ := without(t)
	if status := run(d, []string{"__complete", "vm", "start", ""}); status != 0 || !strings.HasPrefix(stdout.String(), ":4\n") {
		t.Errorf("status %d, output %q", status, stdout)
	}
	if d.answers(t.Context()) == nil {
		t.Error("a daemon answers")
	}
}
