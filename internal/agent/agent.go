// Package agent is banger's side in a guest, in one static program with several
// roles, which it tells apart by its process id and its argv[0] (Main). As /init of
// the initramfs it loads modules and puts the root together out of the VM's disks
// (boot.go). Then, as process 1, it reaps orphans and keeps the agent proper running;
// or it starts a supervisor that does so, and hands process 1 over to the image's
// own init (init.go). The agent proper serves HTTP to the host, over a virtio-serial
// port or vsock (vsock.go): health, configuration, power-off (server.go, poweroff.go), exec sessions
// (session.go, command.go), an ssh server (ssh.go and its siblings) and streams to
// the guest's ports (stream.go). As an sftp server it serves one ssh session, with
// that session's user as its own (sftp.go). And it is the modprobe that the kernel
// calls in images without one (modprobe.go), and, where an image has no rsync, the one
// that runs the host's (borrow.go).
//
// The upper disk, of which the overlay of the root is made, stays mounted at
// /run/initramfs/banger/upper, where the guest's root can see it: it is the guest's
// own disk, and it has to be reachable to be grown, and to be left clean at a power-off.
// Nothing there is for anybody to use.
//
// Process 1 and the agent proper are two processes because a wait for any child,
// which init owes to orphans, would steal the children that the agent waits for.
package agent

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// The names (argv[0]) by which the program knows its roles. systemd spares root's
// processes whose name begins with @ when it kills the others at a shutdown
// (https://systemd.io/ROOT_STORAGE_DAEMONS), so that the agent serves until the end.
const (
	roleServe     = "@banger-agent"
	roleSupervise = "@banger-supervisor"
	roleSFTP      = "banger-sftp"

	secretEnv = "BANGER_SYNC"

	// minProcs is how many goroutines may run at the same time, also on one CPU. With
	// one only, Go's runtime takes that one away from each system call that lasts more
	// than 20 µs, as those of an emulated machine do, and gives it to another thread:
	// many small files then take twice as long.
	minProcs = 4
)

// Main is the program, in the role that it was started for.
func Main() {
	log.SetFlags(0)
	log.SetPrefix("banger-agent: ")
	runtime.GOMAXPROCS(max(minProcs, runtime.NumCPU()))
	var err error
	switch {
	case os.Getpid() == 1:
		err = initProcess()
		announce(err)
		_ = linux.PowerOff()
	case os.Args[0] == roleServe:
		err = serve()
	case os.Args[0] == roleSupervise:
		err = supervise()
	case os.Args[0] == roleSFTP:
		if err = serveSFTP(); err == nil {
			return
		}
	case filepath.Base(os.Args[0]) == roleRsync:
		err = runBorrowed(os.Args[1:])
	case filepath.Base(os.Args[0]) == roleModprobe:
		if err = modprobe(os.Args[1:]); err == nil {
			return
		}
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

// serve is the agent proper.
func serve() error {
	secret := os.Getenv(secretEnv)
	if err := os.Unsetenv(secretEnv); err != nil {
		return err
	}
	l, err := listen(secret)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: Handler(powerOff), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: maxBody}
	return server.Serve(l)
}

// listen opens the guest's end of the channel, of the kind that the host has said.
func listen(secret string) (net.Listener, error) {
	if overVsock() {
		return listenVsock()
	}
	port, err := openPort()
	if err != nil {
		return nil, err
	}
	return wire.Listen(port, secret), nil
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
