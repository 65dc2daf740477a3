package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

const (
	// termGrace is how long processes have between SIGTERM and SIGKILL.
	termGrace = 2 * time.Second
	// forceReserve is the part of the host's patience that is left for powering off
	// without the image's init, when that is not done in time.
	forceReserve = 3 * time.Second
	// systemdPowerOff is the signal, SIGRTMIN+4, at which systemd as process 1 starts
	// poweroff.target; systemd(1). SIGRTMIN is 34 with glibc, signal(7).
	systemdPowerOff = syscall.Signal(34 + 4)
)

// powerOff ends all processes, leaves the disks clean and powers off. The image's
// init does it where there is one, for as long as the host's patience permits.
func powerOff(patience time.Duration) {
	if !ownInit() {
		askInit(time.Now().Add(patience - forceReserve))
		log.Print("the image's init did not power off in time")
	} else {
		_ = linux.SignalAll("TERM")
		_ = linux.SignalAll("CONT")
		for deadline := time.Now().Add(termGrace); time.Now().Before(deadline) && othersRun(); {
			time.Sleep(20 * time.Millisecond)
		}
	}
	_ = linux.SignalAll("KILL")
	cleanDisks("/")
	if err := leave(); err != nil {
		log.Print(err)
	}
}

// leave ends the machine. One whose channel is vsock cannot be switched off, but its VMM
// ends when it starts again; that it is off, the host hears on the console.
func leave() error {
	if !overVsock() {
		return linux.PowerOff()
	}
	if console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0); err == nil {
		_, _ = fmt.Fprintf(console, "\n%s\n", wire.OffWord)
	}
	return linux.Restart()
}

// cleanDisks leaves the VM's disks, of which the tree at root is made, as though they
// had been unmounted.
func cleanDisks(root string) {
	linux.Sync()
	for _, dir := range []string{workMount, "/", upperMount} {
		if err := linux.RemountReadOnly(filepath.Join(root, dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Printf("remount %s read-only: %v", dir, err)
		}
	}
}

// ownInit says whether process 1 is this program.
func ownInit() bool {
	init, err := os.Stat("/proc/1/exe")
	if err != nil {
		return false
	}
	me, err := os.Stat(self)
	return err == nil && os.SameFile(init, me)
}

// askInit asks the image's init to power off, again and again, since it may not be
// ready to listen yet, until the deadline. It does not return when the init obeys.
func askInit(deadline time.Time) {
	asked := false
	for ; time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		// As sd_booted(3) finds out whether it is systemd.
		if info, err := os.Stat("/run/systemd/system"); err == nil && info.IsDir() {
			_ = syscall.Kill(1, systemdPowerOff)
		} else if !asked {
			asked = exec.Command("/sbin/poweroff").Run() == nil
		}
	}
}

// othersRun says whether there are processes besides init, this one and the kernel's.
func othersRun() bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*/exe")
	me := fmt.Sprintf("/proc/%d/exe", os.Getpid())
	for _, d := range dirs {
		if d == me || d == "/proc/1/exe" {
			continue
		}
		if _, err := os.Readlink(d); err == nil {
			return true
		}
	}
	return false
}
