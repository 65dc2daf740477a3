package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/api"

	"github.com/spf13/cobra"
)

// startPatience is how long a starting daemon, ours or another CLI's, may take.
const startPatience = 30 * time.Second

// connect makes sure that a daemon answers; root starts one where none does.
func (d *deps) connect(ctx context.Context) error {
	_, err := d.client.System(ctx)
	if err == nil || api.CodeOf(err) != api.CodeUnavailable {
		return err
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.CodeUnavailable, "no bangerd answers on %s", d.paths.Socket()).
			WithHint("start it as root: sudo bangerd")
	}
	if err := startDaemon(ctx); err != nil && api.CodeOf(err) != api.CodeConflict {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		_, err := d.client.System(ctx)
		if err == nil || api.CodeOf(err) != api.CodeUnavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return api.Errorf(api.CodeUnavailable, "bangerd was started and does not answer on %s", d.paths.Socket()).
				WithHint("look at %s", filepath.Join(d.paths.State, "bangerd.log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
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

// startDaemon starts a daemon that outlives this process, and waits until it says
// that it serves, or why not.
func startDaemon(ctx context.Context) error {
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
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "start bangerd: %w", err)
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

func systemCommands(d *deps) *cobra.Command {
	var asJSON bool
	status := &cobra.Command{
		Use: "status", Short: "Show the daemon of this installation", Example: "  banger system status", Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := d.client.System(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return d.printJSON(s)
			}
			return d.table("", []string{"VERSION", "INSTALLATION", "PID", "STARTED", "STATE", "RUN"},
				[][]string{{s.Version, s.Installation, str(s.PID), ago(s.Started), s.StateDir, s.RunDir}})
		},
	}
	status.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	stop := &cobra.Command{
		Use: "stop", Short: "Stop the daemon; VMs run on", Example: "  banger system stop", Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := d.client.System(cmd.Context())
			if err != nil {
				return err
			}
			if err := d.client.Shutdown(cmd.Context()); err != nil {
				return err
			}
			for deadline := time.Now().Add(startPatience); syscall.Kill(s.PID, 0) == nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					return api.Errorf(api.CodeUnavailable, "stop bangerd: process %d does not end", s.PID)
				}
			}
			return nil
		},
	}
	return group("system", "Look at the daemon", "  banger system status", status, stop)
}
