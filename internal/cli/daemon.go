package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/config"
	"banger/internal/linux"
	"banger/internal/systemd"

	"github.com/spf13/cobra"
)

// startPatience is how long a starting daemon, ours or another CLI's, may take.
const startPatience = 30 * time.Second

// answerPatience is how long a daemon may take for its first answer.
const answerPatience = 15 * time.Second

// connect makes sure that a daemon answers; root starts one where none does.
func (d *deps) connect(ctx context.Context) error {
	err := d.explain(d.answers(ctx))
	if err == nil || ctx.Err() != nil || api.CodeOf(err) != api.CodeUnavailable {
		return err
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.CodeUnavailable, "no bangerd answers on %s", d.paths.Socket()).
			WithHint("any command of root's starts it: %s", d.asRoot("vm list"))
	}
	limited, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for refused := false; ; {
		started := d.startDaemon(ctx)
		switch {
		case started == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case api.CodeOf(started) != api.CodeConflict:
			return started
		case !d.locked(): // the one that had the lock has gone since, or it is not about that
			if refused {
				return started
			}
			refused = true
			continue
		}
		err := d.awaitAnswer(limited)
		switch {
		case err == nil || api.CodeOf(err) != api.CodeUnavailable:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case limited.Err() == nil: // the one that has the lock may be dying
			continue
		case started != nil:
			return started
		}
		return api.Errorf(api.CodeUnavailable, "bangerd was started and does not answer on %s", d.paths.Socket()).
			WithHint("look at %s", filepath.Join(d.paths.State, "bangerd.log"))
	}
}

// locked says whether a daemon has the lock of the installation.
func (d *deps) locked() bool {
	held, _, err := linux.LockHeld(d.paths.Lock())
	return held || err != nil
}

// awaitAnswer asks the daemon until it answers, for a second; the error is that of the last
// time.
func (d *deps) awaitAnswer(ctx context.Context) error {
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for end := time.Now().Add(time.Second); ; {
		_, err := d.client.System(ctx)
		if err == nil || api.CodeOf(err) != api.CodeUnavailable || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-pause.C:
		}
	}
}

// answers asks the daemon for a sign of life.
func (d *deps) answers(ctx context.Context) error {
	asked, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	_, err := d.client.System(asked)
	if err != nil && asked.Err() != nil && ctx.Err() == nil {
		return api.Errorf(api.CodeUnavailable, "bangerd does not answer on %s within %v", d.paths.Socket(), answerPatience).
			WithHint("look at %s; VMs survive when it is killed", filepath.Join(d.paths.State, "bangerd.log"))
	}
	return err
}

// explain says more about what a user without permission can do than the client can.
func (d *deps) explain(err error) error {
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.CodePermissionDenied {
		return err
	}
	group := config.DefaultGroup
	if c, err := config.Load(d.paths.Config); err == nil { // where the user may read it
		group = c.Group
	}
	join := "sudo usermod --append --groups " + group + " $USER"
	if info, err := os.Stat(d.paths.Socket()); err == nil && info.Mode().Perm()&0o060 != 0o060 {
		// The daemon found no group when it started.
		join = "sudo groupadd --force " + group + " && " + join + " && " + d.asRoot("system stop")
	}
	return e.WithHint("as root: %s; or join the group %s and log in again: %s", d.asRoot("..."), group, join)
}

// asRoot is the command line that runs banger as root on this installation: sudo
// drops the environment, and looks for programs in directories of its own.
func (d *deps) asRoot(args string) string {
	line := "sudo"
	for _, v := range d.paths.Env() {
		if name, _, _ := strings.Cut(v, "="); os.Getenv(name) != "" {
			line += " " + v
		}
	}
	program := "banger"
	if self, err := os.Executable(); err == nil {
		program = self
	}
	return line + " " + program + " " + args
}

// findDaemon looks beside the own program, in PATH and in /usr/lib/banger.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), "bangerd")); err == nil {
			return path, nil
		}
	}
	for _, name := range []string{"bangerd", "/usr/lib/banger/bangerd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", api.Errorf(api.CodeUnavailable, "start bangerd: there is no such program").
		WithHint("put bangerd beside banger, into PATH or into /usr/lib/banger")
}

// startService has systemd start the daemon: one of our own would be without the limits,
// the watchdog and the restarts of the unit.
func startService(ctx context.Context) error {
	err := systemd.Start(ctx, systemd.Socket)
	if err == nil {
		err = systemd.Start(ctx, systemd.Service)
	}
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "start bangerd: %w", err).
			WithHint("systemctl status %s, journalctl --unit %s", systemd.Service, systemd.Service)
	}
	return nil
}

// startDaemon starts a daemon that outlives this process, and waits until it says
// that it serves, or why not.
func (d *deps) startDaemon(ctx context.Context) error {
	if systemd.Serves(ctx, d.paths.Socket()) {
		return startService(ctx)
	}
	path, err := findDaemon()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(path, "--ready-fd=3")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), d.paths.Env()...) // absolute, whatever this process was given
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "start bangerd: %w", err).WithHint("put banger and bangerd of one build there")
	}
	go cmd.Wait()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Now()) })
	defer stop()
	r.SetReadDeadline(time.Now().Add(startPatience))
	line, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadString('\n')
	if strings.TrimSpace(line) == "ready" {
		return nil
	}
	var e api.Error
	if json.Unmarshal([]byte(line), &e) == nil && e.Code != "" {
		return &e
	}
	return api.Errorf(api.CodeUnavailable, "start bangerd: it ended without a word (%v)", err).WithHint("run %s by hand", path)
}

var systemKind = kind[api.System]{
	ref: func(s api.System) string { return s.Installation },
	details: []column[api.System]{
		{"version", func(s api.System) string { return s.Version }},
		{"installation", func(s api.System) string { return s.Installation }},
		{"pid", func(s api.System) string { return str(s.PID) }},
		{"started", func(s api.System) string { return when(s.Started) }},
		{"state", func(s api.System) string { return s.StateDir }},
		{"run", func(s api.System) string { return s.RunDir }},
	},
}

func systemCommands(d *deps) *cobra.Command {
	status := local(d, "status", "Show the daemon of this installation", "banger system status", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			s, err := d.client.System(ctx)
			if err != nil {
				return d.explain(err)
			}
			return shown(d, systemKind, s)
		})
	d.withJSON(status)
	d.withQuiet(status, "print the installation's id only")
	stop := local(d, "stop", "Stop the daemon; VMs run on", "banger system stop", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			s, err := d.client.System(ctx)
			if err != nil {
				return d.explain(err)
			}
			if err := d.client.Shutdown(ctx); err != nil {
				return err
			}
			for deadline := time.Now().Add(startPatience); syscall.Kill(s.PID, 0) == nil; time.Sleep(10 * time.Millisecond) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if time.Now().After(deadline) {
					return api.Errorf(api.CodeUnavailable, "stop bangerd: process %d does not end", s.PID).
						WithHint("look at %s", filepath.Join(s.StateDir, "bangerd.log"))
				}
			}
			if d.json {
				return d.printJSON(s)
			}
			return d.done("bangerd " + s.Installation + " has stopped")
		})
	d.withJSON(stop)
	d.withQuiet(stop, "do not say that it has stopped")
	for _, c := range []*cobra.Command{status, stop} {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	return group("system", "Look at the daemon and its disk, and tidy up", "banger system df", status, stop, dfCommand(d), pruneCommand(d))
}
