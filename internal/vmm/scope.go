package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/systemd"
)

// The control groups within a scope, which systemd leaves to us: one for the VMM, and
// one for a process that holds the scope.
const (
	scopeVMM  = "vmm"
	scopeHold = "hold"
)

// scopes makes the cgroups of VMMs where systemd is the service manager: within a scope
// each, which outlives the unit of the daemon. A scope exists as long as there is a
// process in it. So that one exists before its VMM, and until what the kernel counted of
// that has been read, a process that does nothing holds it; that ends with the daemon.
type scopes struct {
	root   string // mount point of the hierarchy
	prefix string // of the names of this installation's

	mu    sync.Mutex
	holds map[string]io.Closer // by the name of the scope; to close it ends the process
}

func newScopes(root, installation string) *scopes {
	return &scopes{root: root, prefix: "banger-" + installation + "-", holds: map[string]io.Closer{}}
}

// name is the ledger's name for the cgroup of a VMM in a scope of its own.
func (s *scopes) name(random string) string {
	return path.Join(systemd.Slice, s.prefix+random+".scope", scopeVMM)
}

// unit is the scope of a cgroup with that name, "" where it is in none.
func (s *scopes) unit(name string) string {
	slice, unit, _ := strings.Cut(path.Dir(name), "/")
	if slice != systemd.Slice || !strings.HasSuffix(unit, ".scope") {
		return ""
	}
	return unit
}

// dir is the directory of a scope.
func (s *scopes) dir(unit string) string { return filepath.Join(s.root, systemd.Slice, unit) }

func (s *scopes) acquire(ctx context.Context, ref resource.Ref) error {
	unit := s.unit(ref.Name)
	dir := s.dir(unit)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		pid, hold, err := startHold(nil)
		if err != nil {
			return err
		}
		if err := systemd.StartScope(ctx, unit, "banger "+strings.TrimSuffix(ref.Owner, "/run"), pid); err != nil {
			return errors.Join(err, hold.Close())
		}
		s.keep(unit, hold)
		if err := failpoint.Pass("scope", "started"); err != nil {
			return err
		}
		// Controllers are only for cgroups without processes of their own.
		err = os.MkdirAll(filepath.Join(dir, scopeHold), 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, scopeHold, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		if err != nil {
			return fmt.Errorf("divide the scope %s: %w", unit, err)
		}
		if err := failpoint.Pass("scope", "divided"); err != nil {
			return err
		}
	}
	if err := s.hold(unit); err != nil {
		return err
	}
	if err := enable(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, scopeVMM), 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

// keep remembers what holds a scope; with nil, what held it ends.
func (s *scopes) keep(unit string, hold io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.holds[unit]; held != nil {
		_ = held.Close() // a pipe of which nothing is wanted but its end
	}
	delete(s.holds, unit)
	if hold != nil {
		s.holds[unit] = hold
	}
}

// hold has a process hold a scope that exists, if none does.
func (s *scopes) hold(unit string) error {
	s.mu.Lock()
	held := s.holds[unit] != nil
	s.mu.Unlock()
	if held {
		return nil
	}
	dir := filepath.Join(s.dir(unit), scopeHold)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("hold the scope %s: %w", unit, err)
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	_, hold, err := startHold(cgroup)
	if err != nil {
		return fmt.Errorf("hold the scope %s: %w", unit, err)
	}
	s.keep(unit, hold)
	return failpoint.Pass("scope", "held")
}

// startHold starts a process that ends when hold is closed, or when this process ends,
// in a cgroup, or with nil in that of this process.
func startHold(cgroup *os.File) (pid int, hold io.Closer, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	cmd := exec.Command("cat")
	cmd.Dir, cmd.Env, cmd.Stdin = "/", []string{}, r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, errors.Join(err, w.Close())
	}
	go func() { _ = cmd.Wait() }() // it ends by end of file, or is killed with its cgroup
	return cmd.Process.Pid, w, nil
}

func (s *scopes) inspect(name string) (resource.Presence, error) {
	_, err := os.Stat(s.dir(s.unit(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return resource.Absent, nil
	}
	return resource.Ours, err
}

// release kills what is in a scope and ends it. Systemd ends one that is empty by
// itself, so that any part of it may go at any time.
func (s *scopes) release(ctx context.Context, name string) error {
	unit := s.unit(name)
	s.keep(unit, nil)
	dir := s.dir(unit)
	remove := func(dir string) error {
		ctx, cancel := context.WithTimeout(ctx, killPatience)
		defer cancel()
		return linux.RemoveCgroup(ctx, dir)
	}
	err := errors.Join(remove(filepath.Join(dir, scopeVMM)), remove(filepath.Join(dir, scopeHold)))
	failpoint.Reach("scope", "emptied")
	err = errors.Join(err, systemd.Stop(ctx, unit), remove(dir))
	failpoint.Reach("scope", "stopped")
	if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	return err
}

// list returns the ledger's names of all scopes of this installation.
func (s *scopes) list() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, systemd.Slice))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list scopes: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), s.prefix) && strings.HasSuffix(e.Name(), ".scope") {
			names = append(names, path.Join(systemd.Slice, e.Name(), scopeVMM))
		}
	}
	return names, nil
}

// KeepScopes has the scopes of VMMs that an earlier run of the daemon started held again.
func (c *Cgroups) KeepScopes() error {
	names, err := c.scopes.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, c.scopes.hold(c.scopes.unit(name)))
	}
	return errors.Join(errs...)
}
