package e2e

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/hosttest"
)

// An image of one program, without a shell, a user or an ssh server.
func TestSSHWithoutShell(t *testing.T) {
	h := hosttest.NewSeeded(t, "XDG_DATA_HOME="+t.TempDir())
	program, err := os.ReadFile(h.Command(t.Context()).Path)
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	for _, entry := range []tar.Header{
		{Name: "usr/bin/", Mode: 0o755, Typeflag: tar.TypeDir},
		{Name: "usr/bin/banger", Mode: 0o755, Size: int64(len(program))},
	} {
		if err := w.WriteHeader(&entry); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(program[:entry.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if r := h.Pipe(t, image.String(), "image", "import", "tiny", "-"); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	h.Must(t, "vm", "run", "--name", "tiny", "--image", "tiny", "--", "banger", "--version")
	if got := h.Must(t, "vm", "ssh", "tiny", "--", "banger", "--version"); !strings.HasPrefix(got, "banger version") {
		t.Errorf("a command of plain words: %q", got)
	}
	for _, line := range []string{"banger --version | banger", ""} {
		args := []string{"vm", "ssh", "tiny"}
		if line != "" {
			args = append(args, "--", line)
		}
		if r := h.Banger(t, args...); r.Exit != 127 || !strings.Contains(r.Stderr, "no shell") {
			t.Errorf("%q: exit status %d, want 127 and the reason\n%s", line, r.Exit, r.Stderr)
		}
	}
	rsyncWithoutShell(t, h)
	h.Must(t, "vm", "delete", "--force", "tiny")
	nothingLeft(t, h)
}

// rsyncWithoutShell copies to and from a VM that has no rsync, no libraries, and no shell
// to start one.
func rsyncWithoutShell(t *testing.T, h *hosttest.Host) {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Fatalf("%v: run make test, which installs it", err)
	}
	dir := t.TempDir()
	config, from, back := filepath.Join(dir, "config"), filepath.Join(dir, "a file"), filepath.Join(dir, "back")
	for name, text := range map[string]string{config: h.Must(t, "vm", "ssh-config", "tiny"), from: "content"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{from, "tiny.vm:/root/"}, {"tiny.vm:/root/a file", back}} {
		r := hosttest.Run(t, exec.CommandContext(t.Context(), "rsync", append([]string{"-a", "-e", "ssh -F " + config}, args...)...), "")
		if r.Exit != 0 {
			t.Fatalf("rsync %q: exit status %d\n%s", args, r.Exit, r.Stderr)
		}
	}
	if text, err := os.ReadFile(back); err != nil || string(text) != "content" {
		t.Errorf("%q came back (%v)", text, err)
	}
}
