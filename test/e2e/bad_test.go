package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

var (
	exitInvalid     = api.CodeInvalid.ExitStatus()
	exitNotFound    = api.CodeNotFound.ExitStatus()
	exitExists      = api.CodeAlreadyExists.ExitStatus()
	exitConflict    = api.CodeConflict.ExitStatus()
	exitUnavailable = api.CodeUnavailable.ExitStatus()
	exitNoSpace     = api.CodeNoSpace.ExitStatus()
	exitDenied      = api.CodePermissionDenied.ExitStatus()
)

// refused is a command line that must come to nothing.
type refused struct {
	name  string
	input string
	args  []string
	exit  int
	error string // matches the error
	hint  string // matches the next step; empty where the error needs none
}

// check runs the command line and looks at what it says and leaves.
func (r refused) check(t *testing.T, h *hosttest.Host) {
	t.Helper()
	h.VMs(t) // a daemon is there
	before := h.Files(t)
	r.says(t, h.Pipe(t, r.input, r.args...))
	if after := h.Files(t); !slices.Equal(before, after) {
		t.Errorf("%v left something:\nbefore %q\nafter  %q", r.args, before, after)
	}
}

// says looks at the status and the words: one line for the error and one for
// the next step, no more.
func (r refused) says(t *testing.T, got hosttest.Result) {
	t.Helper()
	if got.Exit != r.exit {
		t.Errorf("%v: exit status %d, want %d", r.args, got.Exit, r.exit)
	}
	if got.Stdout != "" {
		t.Errorf("%v: an error that writes to stdout: %q", r.args, got.Stdout)
	}
	line, rest, _ := strings.Cut(got.Stderr, "\n")
	if !regexp.MustCompile(r.error).MatchString(line) {
		t.Errorf("%v: error %q does not match %q", r.args, got.Stderr, r.error)
	}
	if r.hint != "" && !regexp.MustCompile(r.hint).MatchString(got.Stderr) {
		t.Errorf("%v: no next step that matches %q in %q", r.args, r.hint, got.Stderr)
	}
	if strings.Contains(strings.TrimSuffix(rest, "\n"), "\n") {
		t.Errorf("%v: more than an error and a next step:\n%s", r.args, got.Stderr)
	}
}

func TestBadInput(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "create", "--name", "taken")
	for _, test := range []refused{
		{name: "unknown image", args: []string{"vm", "run", "--pull", "never", "--image", "nowhere", "--", "true"},
			exit: exitNotFound, error: "nowhere", hint: "banger image"},
		{name: "name in use", args: []string{"vm", "create", "--name", "taken"},
			exit: exitExists, error: "taken", hint: "."},
		{name: "run on a name in use", args: []string{"vm", "run", "--name", "taken", "--", "true"},
			exit: exitExists, error: "taken", hint: "vm (start|exec)"},
		{name: "invalid name", args: []string{"vm", "create", "--name", "No Name"},
			exit: exitInvalid, error: "No Name", hint: "a-z"},
		{name: "name with a path", args: []string{"vm", "create", "--name", "../x"},
			exit: exitInvalid, error: `\.\./x`, hint: "a-z"},
		{name: "name too long", args: []string{"vm", "create", "--name", strings.Repeat("a", 64)},
			exit: exitInvalid, error: "aaa", hint: "63"},
		{name: "no cpus", args: []string{"vm", "run", "--cpus", "0", "--", "true"},
			exit: exitInvalid, error: "(?i)cpu"},
		{name: "negative cpus", args: []string{"vm", "run", "--cpus", "-1", "--", "true"},
			exit: exitInvalid, error: "(?i)cpu"},
		{name: "too many cpus", args: []string{"vm", "run", "--cpus", "100000", "--", "true"},
			exit: exitInvalid, error: "(?i)cpu"},
		{name: "more memory than the host has", args: []string{"vm", "run", "--memory", "64T", "--", "true"},
			exit: exitInvalid, error: "memory", hint: "--memory"},
		{name: "memory that is no size", args: []string{"vm", "run", "--memory", "much", "--", "true"},
			exit: exitInvalid, error: "much"},
		{name: "unknown flag", args: []string{"vm", "run", "--no-such-flag"},
			exit: exitInvalid, error: "no-such-flag", hint: "--help"},
		{name: "unknown command", args: []string{"vm", "no-such-command"},
			exit: exitInvalid, error: "no-such-command", hint: "--help"},
		{name: "unknown vm", args: []string{"vm", "exec", "nobody", "--", "true"},
			exit: exitNotFound, error: "nobody", hint: "vm list"},
		{name: "unknown vm to delete", args: []string{"vm", "delete", "nobody"},
			exit: exitNotFound, error: "nobody", hint: "vm list"},
		{name: "image in use", args: []string{"image", "rm", "debian"},
			exit: exitConflict, error: "debian", hint: "taken|delete"},
		{name: "unknown kernel", args: []string{"kernel", "show", "no-kernel"},
			exit: exitNotFound, error: "no-kernel", hint: "kernel (list|pull)"},
		{name: "missing file", args: []string{"image", "import", "x", "/no/such/file.tar"},
			exit: exitInvalid, error: "/no/such/file.tar"},
	} {
		t.Run(test.name, func(t *testing.T) { test.check(t, h) })
	}
	h.Must(t, "vm", "delete", "taken")
	nothingLeft(t, h)
}

// TestRootDiskRefused asks for a root of one block device where the kernel has no
// device-mapper. What such roots are where it has, the host in a VM shows.
func TestRootDiskRefused(t *testing.T) {
	if (linux.DeviceMapper{}).Supports("snapshot") == nil {
		t.Skip("this host has device-mapper's snapshots")
	}
	h := hosttest.NewSeeded(t)
	for _, command := range []string{"create", "run"} {
		refused{args: []string{"vm", command, "--name", "m", "--root-disk", "dm-snapshot"}, exit: api.CodeUnsupported.ExitStatus(),
			error: `create VM "m": root disk dm-snapshot: the kernel has no`, hint: "modprobe.*--root-disk overlay"}.check(t, h)
	}
	if err := os.WriteFile(h.Paths.Config, []byte("[vm]\nroot_disk = \"dm-snapshot\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.StopDaemon(t)
	refused{args: []string{"vm", "create"}, exit: api.CodeUnsupported.ExitStatus(), error: "root disk dm-snapshot", hint: "overlay"}.check(t, h)
	nothingLeft(t, h)
}

// TestBadArchives imports archives that are broken or hostile.
func TestBadArchives(t *testing.T) {
	h := hosttest.New(t)
	good := archive(t, tar.Header{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir}, tar.Header{Name: "bin/data", Mode: 0o644, Size: 1 << 16})
	for _, test := range []refused{
		{name: "not an archive", input: strings.Repeat("no archive ", 1000), error: "archive|tar|header"},
		{name: "empty", input: "", error: "empty|archive"},
		{name: "truncated", input: good[:len(good)/2], error: "bin/data|truncated|unexpected"},
		{name: "damaged gzip", input: "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage", error: "gzip|flate|corrupt"},
		{name: "damaged zstd", input: "\x28\xb5\x2f\xfdgarbage", error: "zstd|corrupt|magic|window|reserved|block"},
		{name: "absolute path", input: archive(t, tar.Header{Name: "/etc/evil", Mode: 0o644}), error: "/etc/evil"},
		{name: "path that leaves the root", input: archive(t, tar.Header{Name: "a/../../evil", Mode: 0o644}), error: `a/\.\./\.\./evil`},
		{name: "name that ext4 cannot hold", input: archive(t, tar.Header{Name: strings.Repeat("n", 300), Mode: 0o644}), error: "nnn"},
	} {
		test.args, test.exit, test.hint = []string{"image", "import", "bad", "-"}, exitInvalid, "(?m)^hint: .*archive"
		t.Run(test.name, func(t *testing.T) { test.check(t, h) })
	}
	if list := h.Must(t, "image", "list"); strings.Contains(list, "bad") {
		t.Errorf("an image came of it:\n%s", list)
	}
}

// TestBadHost runs banger where something that it needs is missing.
func TestBadHost(t *testing.T) {
	t.Run("no kernel", func(t *testing.T) {
		h := hosttest.New(t)
		rootfs := archive(t, tar.Header{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir})
		if r := h.Pipe(t, rootfs, "image", "import", "tiny", "-"); r.Exit != 0 {
			t.Fatalf("import: exit status %d\n%s", r.Exit, r.Stderr)
		}
		refused{args: []string{"vm", "run", "--pull", "never", "--image", "tiny", "--", "true"},
			exit: exitNotFound, error: "kernel", hint: "banger kernel pull"}.check(t, h)
		nothingLeft(t, h)
	})
	t.Run("no image", func(t *testing.T) {
		h := hosttest.New(t)
		refused{args: []string{"vm", "run", "--pull", "never", "--", "true"},
			exit: exitNotFound, error: "debian", hint: "banger image bootstrap"}.check(t, h)
		nothingLeft(t, h)
	})
	t.Run("no qemu", func(t *testing.T) {
		h := hosttest.NewSeeded(t, "PATH="+pathWithout(t, "qemu-system-x86_64"))
		refused{args: []string{"vm", "run", "--rm", "--", "true"},
			exit: exitUnavailable, error: "qemu", hint: "install|apt"}.check(t, h)
		nothingLeft(t, h)
	})
	t.Run("disk full during an import", func(t *testing.T) {
		h := hosttest.New(t)
		hosttest.MountTmpfs(t, h.Paths.State, "8m")
		big := archive(t, tar.Header{Name: "big", Mode: 0o644, Size: 32 << 20})
		refused{input: big, args: []string{"image", "import", "big", "-"},
			exit: exitNoSpace, error: "space", hint: "."}.check(t, h)
		nothingLeft(t, h)
		h.StopDaemon(t)
	})
	t.Run("disk full during a start", func(t *testing.T) {
		h := hosttest.NewSeeded(t)
		hosttest.MountTmpfs(t, filepath.Join(h.Paths.State, "vms"), "64k")
		refused{args: []string{"vm", "run", "--rm", "--", "true"},
			exit: exitNoSpace, error: "space", hint: "."}.check(t, h)
		nothingLeft(t, h)
		h.StopDaemon(t)
	})
	t.Run("no right to the socket", func(t *testing.T) {
		h := hosttest.New(t)
		h.VMs(t) // starts the daemon
		// The programs may lie where only root may look.
		program := filepath.Join(filepath.Dir(h.Paths.State), "banger")
		asRoot := h.Command(t.Context(), "vm", "list")
		if out, err := exec.Command("install", "-m", "755", asRoot.Path, program).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "vm", "list")
		cmd.Env = asRoot.Env
		refused{args: cmd.Args, exit: exitDenied, error: "bangerd.sock: permission denied",
			// There is no group banger, so that it is to be made first.
			hint: "as root: sudo BANGER_STATE_DIR=.* " + regexp.QuoteMeta(program) + ".*groupadd --force banger && sudo usermod .*system stop"}.
			says(t, hosttest.Run(t, cmd, ""))
	})
}

// TestBadDirectories starts daemons where they cannot keep their things.
func TestBadDirectories(t *testing.T) {
	h := hosttest.New(t)
	file := filepath.Join(filepath.Dir(h.Paths.State), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list := func(env ...string) *exec.Cmd {
		cmd := h.Command(t.Context(), "vm", "list")
		cmd.Env = append(cmd.Env, env...)
		return cmd
	}
	says := func(r refused, cmd *exec.Cmd) {
		t.Helper()
		r.args = cmd.Args
		r.says(t, hosttest.Run(t, cmd, ""))
	}
	for _, env := range []string{"BANGER_STATE_DIR=" + file, "BANGER_RUN_DIR=" + file, "BANGER_STATE_DIR=/proc/none", "BANGER_RUN_DIR=" + file + "/x"} {
		name, dir, _ := strings.Cut(env, "=")
		says(refused{exit: exitUnavailable, error: "start bangerd: mkdir", hint: name + ` \(` + dir + `\)`}, list(env))
	}
	tiny := filepath.Join(filepath.Dir(h.Paths.State), "tiny")
	hosttest.MountTmpfs(t, tiny, "4k")
	says(refused{exit: exitNoSpace, error: "full|no space", hint: "free space"}, list("BANGER_STATE_DIR="+tiny))

	// A relative directory is that of the command line, not of the daemon.
	relative := list("BANGER_STATE_DIR=state", "BANGER_RUN_DIR=run")
	relative.Dir = filepath.Dir(h.Paths.State)
	if r := hosttest.Run(t, relative, ""); r.Exit != 0 || h.DaemonPID() == 0 {
		t.Errorf("relative directories: exit status %d, daemon %d\n%s", r.Exit, h.DaemonPID(), r.Stderr)
	}
	// Another run directory does not show the daemon that has the state directory.
	says(refused{exit: exitUnavailable, error: "process [0-9]+ serves " + h.Paths.State + " already, on " + h.Paths.Run,
		hint: "BANGER_RUN_DIR=" + h.Paths.Run}, list("BANGER_RUN_DIR="+h.Paths.Run+"2"))
	h.StopDaemon(t)
}

// archive makes a tar archive of entries; a file's content is noise, which takes room.
func archive(t *testing.T, entries ...tar.Header) string {
	t.Helper()
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	for _, entry := range entries {
		if err := w.WriteHeader(&entry); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), entry.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// pathWithout returns a PATH with every program of the present one but one.
func pathWithout(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue // a PATH may name what is not there
		}
		for _, entry := range entries {
			if entry.Name() == program {
				continue
			}
			err := os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(dir, entry.Name()))
			if err != nil && !os.IsExist(err) { // the first one of a name counts
				t.Fatal(err)
			}
		}
	}
	return dir
}
