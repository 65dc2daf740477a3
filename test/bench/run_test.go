package bench

import (
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
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/resource"
)

// BenchmarkRunTrue compares `vm run --rm -- true` with the same VMM, started by
// hand with the same kernel, disks and options, whose agent is asked to run true
// as soon as it answers. It prints the time line of a start beside it.
func BenchmarkRunTrue(b *testing.B) {
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "model", "--", "true")
	var model api.VM
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "model", "--json")), &model); err != nil {
		b.Fatal(err)
	}
	hand := newByHand(b, model.PID, filepath.Join(h.Paths.State, "cache"))
	h.Must(b, "vm", "stop", "model")

	compare(b, "run-true", rounds, 1.10,
		func() time.Duration {
			return timed(b, h.Command(b.Context(), "vm", "run", "--rm", "--", "true"))
		},
		func() time.Duration { return hand.run(b) })

	h.Must(b, "vm", "start", "model")
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "model", "--json")), &model); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	h.Must(b, "vm", "exec", "model", "--", "true")
	for _, s := range append(model.Steps, api.Step{Name: "exec", Seconds: time.Since(began).Seconds()}) {
		fmt.Printf("run-true %s=%.1fms\n", s.Name, 1000*s.Seconds)
	}
}

// byHand is a VMM's command line, to be run without banger.
type byHand struct {
	args   []string
	disks  map[string]string // argument that names a writable disk, the disk
	fresh  map[string]string // disk, the file system from which it was made
	secret string
}

// newByHand takes the command line of a running VMM whose disks began as the file
// systems in the directory templates.
func newByHand(b *testing.B, pid int, templates string) *byHand {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		b.Fatal(err)
	}
	h := &byHand{args: strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), disks: map[string]string{}, fresh: map[string]string{}}
	for _, arg := range h.args {
		if _, path, ok := strings.Cut(arg, ",file="); ok && !strings.Contains(arg, "read-only=on") {
			disk, _, _ := strings.Cut(path, ",")
			kind, _, _ := strings.Cut(filepath.Base(disk), "-")
			fresh, err := filepath.Glob(filepath.Join(templates, kind+"-*.ext4"))
			if err != nil || len(fresh) != 1 {
				b.Fatalf("templates of %s: %q, %v", disk, fresh, err)
			}
			h.disks[arg], h.fresh[disk] = disk, fresh[0]
		}
		if boot, err := wire.ParseBoot(arg); err == nil {
			h.secret = boot.Sync
		}
	}
	if h.secret == "" || len(h.disks) == 0 {
		b.Fatalf("no secret or no disks in %q", h.args)
	}
	return h
}

// run boots a machine of its own, runs true in it and kills it. The copies of its
// disks are made before the time is taken.
func (h *byHand) run(b *testing.B) time.Duration {
	b.Helper()
	dir := b.TempDir()
	args := slices.Clone(h.args)
	for i, arg := range args {
		if disk, ok := h.disks[arg]; ok {
			own := filepath.Join(dir, filepath.Base(disk))
			if err := linux.CopySparse(own, h.fresh[disk]); err != nil {
				b.Fatal(err)
			}
			args[i] = strings.Replace(arg, disk, own, 1)
		}
		if before, path, ok := strings.Cut(arg, "path="); ok && strings.HasPrefix(arg, "file,id=console") {
			args[i] = before + "path=" + filepath.Join(dir, filepath.Base(path))
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{openTap(b)}              // its network card is as model's, with nothing at its other end
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the same share of the CPUs as a daemon's child
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	if err := execTrue(b.Context(), filepath.Join(dir, "agent.sock"), h.secret); err != nil {
		b.Error(err)
	}
	return time.Since(began)
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
	b.Cleanup(func() { _ = errors.Join(tap.Close(), linux.DeleteLink(name)) })
	return tap
}

// execTrue waits for the agent behind a socket and has it run true.
func execTrue(ctx context.Context, socket, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dial := func(ctx context.Context) (net.Conn, error) {
		for {
			conn, err := linux.DialUnix(ctx, socket)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			time.Sleep(time.Millisecond)
		}
	}
	conn, err := guest.Connect(ctx, guest.Serial, dial, secret)
	if err != nil {
		return err
	}
	defer conn.Close()
	ws, _, err := websocket.Dial(ctx, "http://agent/exec", &websocket.DialOptions{HTTPClient: &http.Client{Transport: conn.Transport()}})
	if err != nil {
		return err
	}
	defer func() { _ = ws.CloseNow() }()
	open := api.ExecOpen{ID: strings.Repeat("0", 32), Spec: api.ExecSpec{Command: []string{"true"}}}
	if err := ws.Write(ctx, websocket.MessageBinary, api.JSONFrame(api.FrameOpen, 0, open).Marshal()); err != nil {
		return err
	}
	for {
		_, text, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		if f, err := api.ParseFrame(text); err != nil || f.Type == api.FrameExit {
			return err
		}
	}
}
