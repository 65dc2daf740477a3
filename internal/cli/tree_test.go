package cli

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
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
	files := []string{"env-file", "config", "file"}
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

// What a command says can be read by programs, or be silenced.
func TestCommandsHaveJSONAndQuiet(t *testing.T) {
	streams := map[string][]string{ // what they print is not theirs, with the flags that they have none the less
		"banger vm exec": nil, "banger vm ssh": nil, "banger vm proxy": nil, "banger vm logs": nil,
		"banger vm ssh-config": nil, // is for ssh
		"banger vm cp":         {"quiet"},
	}
	d, _, _ := without(t)
	root := newRoot(d)
	commands(func(c *cobra.Command) bool {
		flags, ok := streams[c.CommandPath()]
		if !ok {
			flags = []string{"json", "quiet"}
		}
		if c.HasSubCommands() || c.Name() == "help" || c.Parent().Name() == "completion" {
			flags = nil
		}
		for _, flag := range flags {
			if c.Flags().Lookup(flag) == nil {
				t.Errorf("%s: has no --%s", c.CommandPath(), flag)
			}
		}
		return true
	}, root)
	for path := range streams {
		if c, _, err := root.Find(strings.Fields(path)[1:]); err != nil || c.CommandPath() != path {
			t.Errorf("%s: no such command (%v)", path, err)
		}
	}
}

// What is wrong with a command line is said in words, once.
func TestBadFlags(t *testing.T) {
	for _, test := range []struct{ line, says string }{
		{"--wrong", "banger: unknown flag: --wrong"},
		{"vm set --wrong", "banger: vm set: unknown flag: --wrong"},
		{"vm set api --cpus many", `banger: vm set: --cpus: "many" is not a number that it can take`},
		{"vm set api --cpus 99999999999999999999", `banger: vm set: --cpus: "99999999999999999999" is not a number that it can take`},
		{"vm set api --nat=maybe", `banger: vm set: --nat: "maybe" is neither on nor off`},
		{"vm set api --disk huge", `banger: vm set: --disk: "huge" is not a size, such as 512M or 10G`},
		{"vm set api --disk 99999999999999P", `banger: vm set: --disk: "99999999999999P" is not a size, such as 512M or 10G`},
		{"vm create --memory -1", `banger: vm create: --memory: "-1" is not a size, such as 512M or 10G`},
		{"vm create --memory 0", "banger: vm create: --memory: it cannot be 0"},
		{"vm create --init=maybe", `banger: vm create: --init: "maybe" is not true or false`},
		{"vm logs -n x api", `banger: vm logs: --tail: "x" is not a number that it can take`},
		{"vm show", "banger: vm show: accepts 1 arg(s), received 0"},
		{"vm list --json -q", "banger: vm list: --json and --quiet exclude each other"},
	} {
		d, stdout, stderr := without(t)
		status := run(d, strings.Fields(test.line))
		line, hint, _ := strings.Cut(stderr.String(), "\n")
		if status != api.CodeInvalid.ExitStatus() || line != test.says || !strings.Contains(hint, "--help") || stdout.Len() > 0 {
			t.Errorf("banger %s: status %d, %q, %q, want %q", test.line, status, stdout, stderr, test.says)
		}
	}
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
