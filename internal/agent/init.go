package agent

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// maxRestarts is how often process 1 starts the agent again before it gives the
// machine up: without its agent nobody reaches it.
const maxRestarts = 10

// self is this program, which lies in the initramfs and cannot be reached by a path
// once the root has changed.
const self = "/proc/self/exe"

// inits are where images have their own init, the usual one first.
var inits = []string{"/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/sbin/openrc-init"}

// agentCgroup keeps the agent and what it runs apart from the image's init: systemd
// moves what it finds in the root cgroup into its own.
const agentCgroup = "/sys/fs/cgroup/banger"

// initProcess is process 1. It returns on an error only.
func initProcess() error {
	boot, err := bootRoot()
	if err != nil {
		return err
	}
	if boot.Init {
		return handOver(boot)
	}
	if err := serveModules(os.Getpid()); err != nil {
		return err
	}
	for range maxRestarts {
		started := time.Now()
		child, err := spawn(roleServe, boot.Sync)
		if err != nil {
			return err
		}
		for {
			if pid, err := linux.ReapAny(); err != nil || pid == child.Pid {
				break
			}
		}
		pause(started)
	}
	return fmt.Errorf("the agent ended %d times", maxRestarts)
}

// handOver makes the image's init process 1, with the agent beside it.
func handOver(boot wire.Boot) error {
	path, err := findInit(inits)
	if err != nil {
		cleanDisks("/") // an image without an init is no accident
		return err
	}
	if err := unmanage(); err != nil {
		return err
	}
	supervisor, err := spawn(roleSupervise, boot.Sync)
	if err != nil {
		return err
	}
	if err := serveModules(supervisor.Pid); err != nil {
		return err
	}
	err = syscall.Exec(path, []string{path}, []string{"HOME=/", "TERM=linux", "PATH=" + defaultPath})
	return fmt.Errorf("start the image's init %s: %w", path, err)
}

// findInit returns the first of paths that can be executed.
func findInit(paths []string) (string, error) {
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && linux.Executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the image has no init of its own (%s): use one with systemd or openrc, or a VM without --init",
		strings.Join(paths, ", "))
}

// supervise keeps the agent proper running in a guest whose process 1 is not ours.
func supervise() error {
	secret := os.Getenv(secretEnv)
	if err := leaveRootCgroup(); err != nil {
		log.Print(err) // systemd takes it into its own, which serves as well
	}
	for {
		started := time.Now()
		child, err := spawn(roleServe, secret)
		if err != nil {
			return err
		}
		if _, err := child.Wait(); err != nil {
			return err
		}
		pause(started)
	}
}

func leaveRootCgroup() error {
	if err := os.Mkdir(agentCgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(agentCgroup, "cgroup.procs"), []byte("0"), 0)
}

// spawn starts this program in another role.
func spawn(role, secret string) (*os.Process, error) {
	console, err := os.OpenFile("/dev/console", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = console.Close() }()
	child, err := os.StartProcess(self, []string{role}, &os.ProcAttr{
		Dir: "/",
		Env: []string{"PATH=" + defaultPath, secretEnv + "=" + secret},
		// /dev/null would do for input, but an image's /dev is ours only after the mounts
		Files: []*os.File{console, console, console},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return child, nil
}

// pause keeps an agent that ends at once from being started all the time.
func pause(started time.Time) {
	log.Print("the agent ended; starting it again")
	if time.Since(started) < time.Second {
		time.Sleep(time.Second)
	}
}
