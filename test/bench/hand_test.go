package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/resource"
)

// byHand is a VMM's command line, to be run without banger, and what lies behind the
// descriptors that it names: the sockets of agent and monitor, the console, the disks,
// the tap.
type byHand struct {
	args   []string
	disks  []handDisk
	secret string
}

// handDisk is a disk of the model. A writable one began as the file system fresh.
type handDisk struct{ path, fresh string }

// newByHand takes the command line of a running VMM whose disks began as the file
// systems in the directory templates.
func newByHand(b *testing.B, pid int, templates string) *byHand {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		b.Fatal(err)
	}
	h := &byHand{args: strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")}
	paths := openDisks(b, pid)
	for _, arg := range h.args {
		if boot, err := wire.ParseBoot(arg); err == nil {
			h.secret = boot.Sync
		}
		if !strings.Contains(arg, "file=/dev/fdset/") {
			continue
		}
		if len(h.disks) == len(paths) {
			b.Fatalf("more disks in %q than %q", h.args, paths)
		}
		d := handDisk{path: paths[len(h.disks)]}
		if !strings.Contains(arg, "read-only=on") {
			kind, _, _ := strings.Cut(filepath.Base(d.path), "-")
			fresh, err := filepath.Glob(filepath.Join(templates, kind+"-*.ext4"))
			if err != nil || len(fresh) != 1 {
				b.Fatalf("templates of %s: %q, %v", d.path, fresh, err)
			}
			d.fresh = fresh[0]
		}
		h.disks = append(h.disks, d)
	}
	if h.secret == "" || len(h.disks) == 0 {
		b.Fatalf("no secret or no disks in %q", h.args)
	}
	return h
}

// openDisks are the disks that a VMM has open, in the order in which it got them: it
// duplicates what it is handed.
func openDisks(b *testing.B, pid int) []string {
	b.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	var paths []string
	slices.SortFunc(entries, func(a, b os.DirEntry) int {
		return cmp.Or(len(a.Name())-len(b.Name()), cmp.Compare(a.Name(), b.Name())) // as numbers
	})
	for _, e := range entries {
		path, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && filepath.Ext(path) == ".ext4" && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// handMachine is a machine that runs without banger.
type handMachine struct {
	dir      string // of its sockets and disks
	prepared time.Duration
	cmd      *exec.Cmd
	conn     *guest.Conn
}

// boot starts a machine, with more options for the VMM, and returns when its agent
// answers. Before, it makes copies of the disks: prepared is how long that took.
func (h *byHand) boot(b *testing.B, options ...string) *handMachine {
	b.Helper()
	began := time.Now()
	m := &handMachine{dir: b.TempDir()}
	m.cmd = exec.Command(h.args[0], append(slices.Clone(h.args[1:]), options...)...)
	m.cmd.Dir = m.dir
	m.cmd.Stderr = os.Stderr
	m.cmd.ExtraFiles = h.files(b, m.dir)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the same share of the CPUs as a daemon's child
	m.prepared = time.Since(began)
	err := m.cmd.Start()
	for _, f := range m.cmd.ExtraFiles {
		_ = f.Close() // nothing was written to it here
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(m.kill)
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	conn, err := guest.Connect(ctx, guest.Serial, func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, "agent.sock") }, h.secret)
	if err != nil {
		b.Fatal(err)
	}
	m.conn = conn
	return m
}

// files are what the VMM is handed, in a directory of its own: with fresh disks, and a
// network card as the model's with nothing at its other end.
func (h *byHand) files(b *testing.B, dir string) []*os.File {
	b.Helper()
	var files []*os.File
	open := func(path string, flag int) {
		f, err := os.OpenFile(path, flag, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, f)
	}
	for _, name := range []string{"agent.sock", "qmp.sock"} {
		l, err := linux.ListenUnix(filepath.Join(dir, name))
		if err != nil {
			b.Fatal(err)
		}
		f, err := l.(*net.UnixListener).File()
		if err := errors.Join(err, l.Close()); err != nil {
			b.Fatal(err)
		}
		files = append(files, f)
	}
	open(filepath.Join(dir, "console.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	for _, d := range h.disks {
		if d.fresh == "" {
			open(d.path, os.O_RDONLY)
			continue
		}
		own := filepath.Join(dir, filepath.Base(d.path))
		if err := linux.CopySparse(own, d.fresh); err != nil {
			b.Fatal(err)
		}
		open(own, os.O_RDWR)
	}
	return append(files, openTap(b))
}

// dial connects with a socket of the VMM's, as soon as that is there.
func (m *handMachine) dial(ctx context.Context, socket string) (net.Conn, error) {
	for {
		conn, err := linux.DialUnix(ctx, filepath.Join(m.dir, socket))
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
		time.Sleep(time.Millisecond)
	}
}

// kill ends the machine; it may have ended.
func (m *handMachine) kill() {
	if m.conn != nil {
		m.conn.Close()
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// openTap makes a tap, which goes when the benchmark ends.
func openTap(b *testing.B) *os.File {
	b.Helper()
	name := "hand" + resource.RandomName(4)
	if err := errors.Join(linux.AddTap(name), linux.SetLinkUp(name)); err != nil {
		b.Fatal(err)
	}
	tap, err := linux.OpenTap(name)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = linux.DeleteLink(name) })
	return tap
}

// exec runs a command in the machine, which has to succeed.
func (m *handMachine) exec(b *testing.B, command ...string) {
	b.Helper()
	if err := m.run(b.Context(), command); err != nil {
		b.Errorf("%q: %v", command, err)
	}
}

func (m *handMachine) run(ctx context.Context, command []string) error {
	ws, _, err := websocket.Dial(ctx, "http://agent/exec", &websocket.DialOptions{HTTPClient: &http.Client{Transport: m.conn.Transport()}})
	if err != nil {
		return err
	}
	defer func() { _ = ws.CloseNow() }()
	open := api.ExecOpen{ID: resource.RandomName(16), Spec: api.ExecSpec{Command: command}}
	if err := ws.Write(ctx, websocket.MessageBinary, api.JSONFrame(api.FrameOpen, 0, open).Marshal()); err != nil {
		return err
	}
	var said strings.Builder
	for {
		_, text, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		f, err := api.ParseFrame(text)
		switch {
		case err != nil:
			return err
		case f.Type == api.FrameStderr:
			said.Write(f.Data)
		case f.Type == api.FrameExit:
			var status api.ExecStatus
			if err := json.Unmarshal(f.Data, &status); err != nil || status != (api.ExecStatus{}) {
				return errors.Join(err, fmt.Errorf("it ended with %+v: %s", status, &said))
			}
			return nil
		}
	}
}
