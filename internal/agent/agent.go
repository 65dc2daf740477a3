// Package agent is banger's side in a guest, in one static program with three
// roles. As /init of the initramfs it loads modules and puts the root together
// out of the VM's disks (boot.go); then, as process 1, it reaps orphans and keeps
// the agent proper running (Main); and as the agent proper it serves HTTP to the
// host, over a virtio-serial port: health, configuration, power-off (server.go)
// and exec sessions (session.go, command.go).
//
// The upper disk, of which the overlay of the root is made, stays mounted at
// /run/banger/upper, where the guest's root can see it: it is the guest's own disk,
// and it has to be reachable to be grown, and to be left clean at a power-off.
// Nothing there is for anybody to use.
//
// Process 1 and the agent proper are two processes because a wait for any child,
// which init owes to orphans, would steal the children that the agent waits for.
package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

const (
	roleServe   = "banger-agent"
	secretEnv   = "BANGER_SYNC"
	maxRestarts = 10
)

// Main is the program: process 1, or the agent proper under its own name.
func Main() {
	log.SetFlags(0)
	log.SetPrefix("banger-agent: ")
	var err error
	switch {
	case os.Getpid() == 1:
		err = initProcess()
		announce(err)
		_ = linux.PowerOff()
	case os.Args[0] == roleServe:
		err = serve()
	default:
		err = errors.New("this is the agent of a banger guest; it runs as its process 1")
	}
	log.Fatal(err)
}

// announce says on the console why the guest ends, and lets it get out.
func announce(err error) {
	console, openErr := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if openErr != nil {
		console = os.Stderr
	}
	_, _ = fmt.Fprintf(console, "\nbanger-agent: %v; powering off\n", err)
	linux.Sync()
	time.Sleep(100 * time.Millisecond)
}

func initProcess() error {
	// The image's file system replaces the one that the program came from.
	self, err := os.Open("/init")
	if err != nil {
		return err
	}
	boot, err := bootRoot()
	if err != nil {
		return err
	}
	for range maxRestarts {
		started := time.Now()
		if err := superviseOnce(self, boot.Sync); err != nil {
			return err
		}
		log.Print("the agent ended; starting it again")
		if time.Since(started) < time.Second {
			time.Sleep(time.Second)
		}
	}
	return fmt.Errorf("the agent ended %d times", maxRestarts)
}

// superviseOnce starts the agent proper and reaps until it ends.
func superviseOnce(self *os.File, secret string) error {
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = console.Close() }()
	child, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", self.Fd()), []string{roleServe}, &os.ProcAttr{
		Dir: "/",
		Env: []string{"PATH=" + defaultPath, secretEnv + "=" + secret},
		// /dev/null would do for input, but an image's /dev is ours only after the mounts
		Files: []*os.File{console, console, console},
	})
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	for {
		pid, err := linux.ReapAny()
		if err != nil || pid == child.Pid {
			return nil
		}
	}
}

// serve is the agent proper.
func serve() error {
	secret := os.Getenv(secretEnv)
	if err := os.Unsetenv(secretEnv); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	l := wire.Listen(port, secret)
	server := &http.Server{Handler: Handler(powerOff), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: maxBody}
	return server.Serve(l)
}

// openPort finds the virtio-serial port of the channel by its name.
func openPort() (io.ReadWriteCloser, error) {
	for range 200 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil || strings.TrimSpace(string(b)) != wire.SerialPort {
				continue
			}
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			return &port{f}, nil
		}
		time.Sleep(25 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio-serial port is called %s", wire.SerialPort)
}

// port is a virtio-serial port that waits while no host is connected, when the
// kernel's driver says end of file.
type port struct{ *os.File }

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// powerOff ends all processes, leaves the disks clean and powers off.
func powerOff() {
	_ = linux.SignalAll("TERM")
	_ = linux.SignalAll("CONT")
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline) && othersRun(); {
		time.Sleep(20 * time.Millisecond)
	}
	_ = linux.SignalAll("KILL")
	linux.Sync()
	for _, dir := range []string{workMount, "/", upperMount} {
		if err := linux.RemountReadOnly(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Printf("remount %s read-only: %v", dir, err)
		}
	}
	if err := linux.PowerOff(); err != nil {
		log.Print(err)
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
