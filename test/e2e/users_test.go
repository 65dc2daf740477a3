package e2e

import (
	"context"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// group is one that every Debian has.
const group = "nogroup"

// as runs a command line of banger as another user of the host, in one group.
func as(t *testing.T, h *hosttest.Host, program string, uid, gid uint32, args ...string) hosttest.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, args...)
	cmd.Path, cmd.Dir = program, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	return hosttest.Run(t, cmd, "")
}

// TestUsers has users of one host meet: what is another's is not there, what is
// root's alone is denied, and who is not in the group gets no word in.
func TestUsers(t *testing.T) {
	h := hosttest.NewSeeded(t)
	g, err := user.LookupGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	gid64, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	const one, other = 54321, 54322
	gid := uint32(gid64)
	if err := os.WriteFile(h.Paths.Config, []byte("group = \""+group+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := public(t, h)
	h.Must(t, "vm", "create", "--name", "roots")
	kernel := strings.Fields(h.Must(t, "kernel", "list", "--quiet"))[0]

	if r := as(t, h, program, one, gid, "vm", "create", "--name", "theirs"); r.Exit != 0 {
		t.Fatalf("a member of the group makes a VM: %s", r.Stderr)
	}
	mine := filepath.Join(filepath.Dir(program), "mine.tar")
	if err := os.WriteFile(mine, []byte(archiveOf(t, map[string]string{"bin/mine": "mine"})), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		uid  uint32
		args []string
		code api.Code // empty: it is done
	}{
		{one, []string{"vm", "show", "theirs"}, ""},
		{one, []string{"vm", "show", "roots"}, api.CodeNotFound},
		{one, []string{"vm", "start", "roots"}, api.CodeNotFound},
		{one, []string{"vm", "exec", "roots", "--", "true"}, api.CodeNotFound},
		{one, []string{"vm", "logs", "roots"}, api.CodeNotFound},
		{one, []string{"system", "df"}, ""},
		{one, []string{"system", "prune", "--force", "--lost"}, api.CodePermissionDenied},
		{one, []string{"vm", "delete", "--force", "roots"}, api.CodeNotFound},
		{other, []string{"vm", "show", "theirs"}, api.CodeNotFound},
		{other, []string{"vm", "delete", "--force", "theirs"}, api.CodeNotFound},
		{other, []string{"image", "show", "debian"}, ""},
		{other, []string{"image", "rm", "debian"}, api.CodePermissionDenied},
		{other, []string{"kernel", "rm", kernel}, api.CodePermissionDenied},
		{other, []string{"kernel", "default", kernel}, api.CodePermissionDenied},
		{other, []string{"system", "stop"}, api.CodePermissionDenied},
		// An image of one user is nobody else's, but for root.
		{one, []string{"image", "import", "mine", mine}, ""},
		{one, []string{"image", "tag", "debian", "base"}, ""},
		{other, []string{"image", "show", "mine"}, api.CodeNotFound},
		{other, []string{"image", "history", "mine@54321"}, api.CodeNotFound},
		{other, []string{"image", "export", "mine", "-"}, api.CodeNotFound},
		{other, []string{"image", "tag", "mine", "stolen"}, api.CodeNotFound},
		{other, []string{"image", "rm", "mine"}, api.CodeNotFound},
		{other, []string{"vm", "create", "--pull", "never", "--image", "mine"}, api.CodeNotFound},
		{other, []string{"vm", "create", "--pull", "never", "--image", "base"}, api.CodeNotFound},
		{other, []string{"image", "prune", "--all", "--force"}, ""},
		{one, []string{"image", "export", "mine", "-"}, ""},
		{one, []string{"vm", "create", "--pull", "never", "--image", "mine", "--name", "of-mine"}, ""},
		{one, []string{"vm", "delete", "of-mine"}, ""},
		{0, []string{"image", "history", "mine@54321"}, ""},
		{one, []string{"image", "prune", "--all", "--force"}, ""},
		{one, []string{"image", "show", "mine"}, api.CodeNotFound},
		{one, []string{"image", "show", "debian"}, ""},
	} {
		want := 0
		if test.code != "" {
			want = test.code.ExitStatus()
		}
		if r := as(t, h, program, test.uid, gid, test.args...); r.Exit != want {
			t.Errorf("uid %d: banger %s: exit status %d, want %d\n%s", test.uid, strings.Join(test.args, " "), r.Exit, want, r.Stderr)
		}
	}
	for uid, want := range map[uint32]int{one: 1, other: 0} {
		if r := as(t, h, program, uid, gid, "vm", "list", "--quiet"); r.Exit != 0 || len(strings.Fields(r.Stdout)) != want {
			t.Errorf("uid %d sees %q, want %d VMs", uid, r.Stdout, want)
		}
	}
	if n := len(h.VMs(t)); n != 2 {
		t.Errorf("root sees %d VMs, want 2", n)
	}
	stranger := as(t, h, program, other, other, "vm", "list")
	if stranger.Exit != api.CodePermissionDenied.ExitStatus() || !strings.Contains(stranger.Stderr, h.Paths.Socket()) {
		t.Errorf("who is not in the group: exit status %d\n%s", stranger.Exit, stranger.Stderr)
	}
}

// public copies the command line to where every user may run it.
func public(t *testing.T, h *hosttest.Host) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bgr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "banger")
	in, err := os.Open(h.Command(t.Context()).Path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(program, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o755); err != nil { // the umask may have taken something
		t.Fatal(err)
	}
	return program
}
