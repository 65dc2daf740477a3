package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/bootstrap"
	"banger/internal/hosttest"
)

// example is a command of the README with the output that the README shows.
type example struct {
	command string
	output  []string
}

// tour returns the commands in the README's blocks of console.
func tour(t *testing.T) []example {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []example
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSuffix(line, "\n")
			if command, ok := strings.CutPrefix(line, "# "); ok {
				all = append(all, example{command: command})
			} else if len(all) > 0 {
				last := &all[len(all)-1]
				last.output = append(last.output, line)
			}
		}
	}
	if len(all) < 10 {
		t.Fatalf("the tour has %d commands", len(all))
	}
	return all
}

// What differs from run to run: ids, sizes, times, the random name of a VM, widths.
var differs = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "ID"},
	{regexp.MustCompile(`(?:Less than a second|About a minute|\d+ \w+) ago`), "AGO"},
	{regexp.MustCompile(`^Linux \S+ `), "Linux NAME "},
	{regexp.MustCompile(`\d+(?:[.-]\d+)*`), "N"},
	{regexp.MustCompile(`\s+`), " "},
}

func comparable(lines []string) []string {
	out := []string{}
	for _, line := range lines {
		for _, d := range differs {
			line = d.what.ReplaceAllString(line, d.by)
		}
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// The README's tour is what a user sees who has nothing but the programs: its
// first command gets the kernel and the image of the host's own distribution.
func TestTour(t *testing.T) {
	if bootstrap.Host() != "debian" {
		t.Skip("the README shows what Debian shows")
	}
	h := hosttest.New(t)
	h.OnMachine(t) // where the distribution's packages come from
	for _, step := range tour(t) {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-c", step.command)
		path := "PATH=" + filepath.Dir(h.Program()) + ":" + os.Getenv("PATH")
		cmd.Env = slices.Concat(os.Environ(), h.Env(), []string{path})
		cmd.WaitDelay = 10 * time.Second
		got := hosttest.Run(t, h.Enter(cmd), "")
		cancel()
		// A terminal shows what is made, and no lines of progress.
		said := slices.DeleteFunc(strings.Split(got.Stderr, "\n"), func(line string) bool {
			return regexp.MustCompile(`^(bootstrap|find|download|unpack) `).MatchString(line)
		})
		lines := comparable(append(said, strings.Split(got.Stdout, "\n")...))
		if want := comparable(step.output); !slices.Equal(lines, want) || got.Exit != 0 {
			t.Errorf("# %s\nexit status %d, printed\n%s\nthe README says\n%s", step.command, got.Exit,
				strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	}
	nothingLeft(t, h)
}
