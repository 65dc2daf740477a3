package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// TestFiles copies files into a machine and out of it, and looks at what it uses.
func TestFiles(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--disk", "64M", "--", "true")

	t.Run("copy", func(t *testing.T) { copyRules(t, h) })
	t.Run("copy everything", func(t *testing.T) { copyEverything(t, h) })
	t.Run("streams", func(t *testing.T) { copyStreams(t, h) })
	t.Run("refused", func(t *testing.T) { copyRefused(t, h) })
	t.Run("daemon killed", func(t *testing.T) { copyDaemonKilled(t, h) })
	t.Run("stats and ports", func(t *testing.T) { statsAndPorts(t, h) })
	t.Run("logs", func(t *testing.T) { logsFollowed(t, h) })

	nothingLeft(t, h)
}

// seen lists a tree as find(1) does, with run as the shell that it is in.
const seen = `cd "$0" && find . -printf '%p %y %m %s %l\n' | sed 's/ d \([0-9]*\) [0-9]*/ d \1/' | sort`

func seenHere(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", seen, dir).Output()
	if err != nil {
		t.Fatalf("look at %s: %v", dir, err)
	}
	return string(out)
}

// copyRules has one case of each rule of docker cp, in both directions: the same
// script of copies between two trees, of which one is in the VM.
func copyRules(t *testing.T, h *hosttest.Host) {
	const trees = `rm -rf "$0" && mkdir -p "$0" && cd "$0" && mkdir -p src/d/sub dst/d dst/here && echo f >src/f && echo g >src/d/sub/g &&
		ln -s f src/link && ln -s here dst/tohere && echo old >dst/old && ln -s old dst/toold && chmod 640 src/f && touch -d @1000000000 src/f`
	copies := []struct {
		src, dst string
		fails    bool
	}{
		{"src/f", "dst/new", false}, {"src/f", "dst/here", false}, {"src/f", "dst/old", false}, {"src/f", "dst/none/", true},
		{"src/f", "dst/none/f", true}, {"src/f/", "dst/x", true}, {"src/d", "dst/d2", false}, {"src/d", "dst/here", false},
		{"src/d/.", "dst/d", false}, {"src/d", "dst/old", true}, {"src/d", "dst/tohere/", false}, {"src/link", "dst/l", false},
		{"src/none", "dst/x", true},
	}
	for _, in := range []bool{true, false} {
		here := t.TempDir()
		if out, err := exec.Command("sh", "-c", trees, here+"/t").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		h.Must(t, "vm", "exec", "m", "--", "sh", "-c", trees, "/srv/t")
		for _, c := range copies {
			src, dst := here+"/t/"+c.src, "m:/srv/t/"+c.dst
			if !in {
				src, dst = "m:/srv/t/"+c.src, here+"/t/"+c.dst
			}
			if r := h.Banger(t, "vm", "cp", src, dst); (r.Exit != 0) != c.fails || r.Stdout != "" || c.fails == (r.Stderr == "") {
				t.Errorf("cp %s %s: exit status %d, %s%s", src, dst, r.Exit, r.Stdout, r.Stderr)
			}
		}
		follow := []string{"vm", "cp", "-L", here + "/t/src/link", "m:/srv/t/dst/followed"}
		if !in {
			follow = []string{"vm", "cp", "-L", "m:/srv/t/src/link", here + "/t/dst/followed"}
		}
		h.Must(t, follow...)
		got := h.Must(t, "vm", "exec", "m", "--", "sh", "-c", seen, "/srv/t/dst")
		if !in {
			got = strings.TrimSpace(seenHere(t, here+"/t/dst"))
		}
		want := strings.Join([]string{
			". d 755 ", "./d d 755 ", "./d/sub d 755 ", "./d/sub/g f 644 2 ", "./d2 d 755 ", "./d2/sub d 755 ", "./d2/sub/g f 644 2 ",
			"./followed f 640 2 ", "./here d 755 ", "./here/d d 755 ", "./here/d/sub d 755 ", "./here/d/sub/g f 644 2 ", "./here/f f 640 2 ",
			"./l l 777 1 f", "./new f 640 2 ", "./old f 640 2 ", "./tohere l 777 4 here", "./toold l 777 3 old"}, "\n")
		if got != strings.TrimSpace(want) {
			t.Errorf("into the VM: %v; got\n%s\nwant\n%s", in, got, want)
		}
		if in {
			if date := h.Must(t, "vm", "exec", "m", "--", "stat", "-c", "%Y", "/srv/t/dst/new"); date != "1000000000" {
				t.Errorf("the date of a copy in the VM is %s", date)
			}
		} else if info, err := os.Stat(here + "/t/dst/new"); err != nil || info.ModTime().Unix() != 1e9 {
			t.Errorf("the date of a copy is %v, %v", info.ModTime(), err)
		}
	}
}

// copyEverything copies what is hard to copy in and out again, with all that belongs
// to it.
func copyEverything(t *testing.T, h *hosttest.Host) {
	dir := t.TempDir()
	made := exec.Command("sh", "-ec", `mkdir tree tree/locked; echo x >tree/file; ln tree/file tree/again; chown 12:34 tree/file; chmod 4711 tree/file
		mkfifo tree/pipe; printf y >"tree/new
line"; printf z >tree/'quo"te'; truncate -s 3M tree/zeros; echo in >tree/locked/in; chmod 500 tree/locked; ln -s /nowhere tree/dangling`)
	made.Dir = dir
	if out, err := made.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tree, back := filepath.Join(dir, "tree"), filepath.Join(dir, "back")
	h.Must(t, "vm", "cp", "-a", tree, "m:/srv/tree")
	if got := h.Must(t, "vm", "exec", "m", "--", "sh", "-c", seen, "/srv/tree"); got != strings.TrimSpace(seenHere(t, tree)) {
		t.Errorf("in the VM:\n%s\nhere:\n%s", got, seenHere(t, tree))
	}
	if got := h.Must(t, "vm", "exec", "m", "--", "stat", "-c", "%u:%g %h", "/srv/tree/file"); got != "12:34 2" {
		t.Errorf("owner and links of a file: %s", got)
	}
	if r := h.Banger(t, "vm", "cp", "-a", "m:/srv/tree", back); r.Exit != exitInvalid || !strings.Contains(r.Stderr, "pipe") {
		t.Errorf("a pipe is made on the host: exit status %d, %s", r.Exit, r.Stderr)
	}
	h.Must(t, "vm", "exec", "m", "--", "rm", "/srv/tree/pipe")
	if err := os.Remove(filepath.Join(tree, "pipe")); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "vm", "cp", "-a", "m:/srv/tree/.", back)
	if got, want := seenHere(t, back), seenHere(t, tree); got != want {
		t.Errorf("back:\n%s\nhere:\n%s", got, want)
	}
	h.Must(t, "vm", "cp", "m:/srv/tree/file", back+"-file")
	if info, err := os.Stat(back + "-file"); err != nil || info.Mode() != 0o711 {
		t.Errorf("without -a: %v, %v", info.Mode(), err)
	}
}

func copyStreams(t *testing.T, h *hosttest.Host) {
	h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "mkdir -p /srv/s/d && echo x >/srv/s/d/x")
	out := h.Banger(t, "vm", "cp", "m:/srv/s/d", "-")
	if r := hosttest.Run(t, exec.Command("tar", "t"), out.Stdout); r.Stdout != "d/\nd/x\n" || r.Exit != 0 {
		t.Errorf("archive: %q, %s", r.Stdout, r.Stderr)
	}
	if r := h.Pipe(t, out.Stdout, "vm", "cp", "-", "m:/srv/s"); r.Exit != 0 {
		t.Errorf("extract: %s", r.Stderr)
	}
	if r := h.Pipe(t, out.Stdout, "vm", "cp", "-", "m:/srv/none"); r.Exit != exitConflict {
		t.Errorf("extract in no directory: exit status %d, %s", r.Exit, r.Stderr)
	}
	if r := h.Pipe(t, out.Stdout[:700], "vm", "cp", "-", "m:/srv/s"); r.Exit == 0 {
		t.Error("an archive that is cut off is extracted")
	}
}

func copyRefused(t *testing.T, h *hosttest.Host) {
	for _, args := range [][]string{{"m:/etc", "m:/srv"}, {"/etc/passwd", "/tmp/x"}, {"m:", "/tmp"}, {"none:/etc", "/tmp"}, {"/etc/passwd", "none:/"}} {
		if r := h.Banger(t, "vm", "cp", args[0], args[1]); r.Exit < 240 || !strings.Contains(r.Stderr, "hint:") {
			t.Errorf("cp %q: exit status %d, %s", args, r.Exit, r.Stderr)
		}
	}
}

// copyDaemonKilled kills the daemon in the middle of a copy, each way. The command
// line says so, and nothing is there that looks complete.
func copyDaemonKilled(t *testing.T, h *hosttest.Host) {
	h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "mkdir /srv/k && truncate -s 600M /srv/big")
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 600<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][2]string{{"m:/srv/big", dir + "/out"}, {big, "m:/srv/k/in"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
		errs := &buffer{}
		cmd := h.Command(ctx, "vm", "cp", args[0], args[1])
		cmd.Stderr = errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		hosttest.Eventually(t, 30*time.Second, "a part of the file is there", func() bool {
			here, _ := filepath.Glob(dir + "/.banger-*") // the pattern is in order
			return len(here) > 0 || h.Banger(t, "vm", "exec", "m", "--", "sh", "-c", "ls /srv/k/.banger-*").Exit == 0
		})
		h.KillDaemon(t)
		_ = cmd.Wait() // the exit status is looked at
		if got := cmd.ProcessState.ExitCode(); got < 240 || !strings.Contains(errs.String(), "broke") {
			t.Errorf("cp %q: exit status %d, %s", args, got, errs)
		}
		cancel()
	}
	left, err := filepath.Glob(dir + "/*")
	hidden, herr := filepath.Glob(dir + "/.b*")
	if err != nil || herr != nil || len(left) != 1 || len(hidden) > 0 {
		t.Errorf("left here: %q, %q", left, hidden)
	}
	hosttest.Eventually(t, 30*time.Second, "nothing is left in the VM", func() bool {
		return h.Must(t, "vm", "exec", "m", "--", "ls", "-A", "/srv/k") == ""
	})
}

func statsAndPorts(t *testing.T, h *hosttest.Host) {
	var all []api.Stats
	if err := json.Unmarshal([]byte(h.Must(t, "vm", "stats", "--json")), &all); err != nil || len(all) != 1 {
		t.Fatalf("%v, %+v", err, all)
	}
	s := all[0]
	if s.Name != "m" || s.Host.Memory < 32<<20 || s.Host.Disk <= 0 || s.Host.CPU <= 0 {
		t.Errorf("host: %+v", s)
	}
	if g := s.Guest; g == nil || g.Memory.Total < 256<<20 || g.Uptime <= 0 || g.Processes < 2 || g.Work == nil || g.Work.Total > 64<<20 || g.Root.Total < 1<<30 {
		t.Errorf("guest: %+v", g)
	}
	if table := h.Must(t, "vm", "stats", "m"); !strings.Contains(table, "HOST MEMORY") || strings.Count(table, "\n") != 1 {
		t.Errorf("table:\n%s", table)
	}
	var ports []api.Port
	if err := json.Unmarshal([]byte(h.Must(t, "vm", "ports", "m", "--json")), &ports); err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		if p.Process == "" || p.PID == 0 {
			t.Errorf("%+v belongs to nobody", p)
		}
	}
	h.Must(t, "vm", "exec", "m", "--", "sh", "-c",
		`perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:8123") or die; sleep 1000' >/dev/null 2>&1 </dev/null &`)
	hosttest.Eventually(t, 30*time.Second, "the new port is listed", func() bool {
		out := h.Must(t, "vm", "ports", "m")
		return strings.Contains(out, "8123") && strings.Contains(out, "perl") && strings.Contains(out, "127.0.0.1")
	})
}

// logsFollowed follows the console through a stop and a start to the VM's end.
func logsFollowed(t *testing.T, h *hosttest.Host) {
	say := func(n int) {
		h.Must(t, "vm", "exec", "m", "--", "sh", "-c", fmt.Sprintf("echo said-$((%d+40)) >/dev/console", n))
	}
	say(1)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	out := &buffer{}
	cmd := h.Command(ctx, "vm", "logs", "--follow", "--tail", "1", "m")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "said-41")
	say(2)
	out.await(t, "said-42")
	h.Must(t, "vm", "stop", "m")
	out.await(t, "Power down")
	h.Must(t, "vm", "start", "m")
	say(3)
	out.await(t, "said-43")
	if tail := h.Must(t, "vm", "logs", "m", "--tail", "1"); strings.Count(tail, "\n") != 0 || !strings.Contains(tail, "said-43") {
		t.Errorf("the last line: %q", tail)
	}
	h.Must(t, "vm", "delete", "--force", "m")
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs --follow: %v", err)
	}
	if text := out.String(); !strings.HasPrefix(text, "said-41") || strings.Count(text, "said-4") != 3 {
		t.Errorf("followed:\n%s", text)
	}
}
