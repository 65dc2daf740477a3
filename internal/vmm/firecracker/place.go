package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// Names of the sockets in the directory that the VMM has of its own in a machine's run
// directory, and of the run directory's other content.
const (
	apiSocket   = "api.sock"
	vsockSocket = "v.sock"
	socketDir   = "vmm"
	jailDir     = "jail"
)

// readySocket is where Firecracker connects to when the guest does to wire.ReadyPort.
var readySocket = fmt.Sprintf("%s_%d", vsockSocket, wire.ReadyPort)

// The files of a run beside the log: what Firecracker itself logs, and a named pipe with
// its metrics, of which it drops those that nobody reads.
const (
	logFile     = "firecracker.log"
	metricsFile = "firecracker.metrics"
)

// place is where a machine's files are, for the daemon and for its VMM.
type place struct {
	m      vmm.Machine
	jailed bool
	from   string // directory of the snapshot that is restored; empty for a boot
}

func (p place) sockets() string { return filepath.Join(p.m.RunDir, socketDir) }
func (p place) log() string     { return filepath.Join(filepath.Dir(p.m.Log), logFile) }
func (p place) metrics() string { return filepath.Join(filepath.Dir(p.m.Log), metricsFile) }

// inside is the path by which the VMM knows a file: name in its jail, else that of the
// host.
func (p place) inside(name, path string) string {
	if p.jailed {
		return "/" + name
	}
	return path
}

// socket is a socket's path for the VMM, whose working directory is that of the sockets
// where it is in no jail: their paths may be longer than an address can be.
func (p place) socket(name string) string { return p.inside("run/"+name, name) }

func (p place) disk(i int) string { return p.inside("disk"+strconv.Itoa(i), p.m.Disks[i].Path) }

// The files of a snapshot.
const (
	snapshotState  = "state"
	snapshotMemory = "memory"
)

// snapshot is a snapshot's file for the VMM.
func (p place) snapshot(dir, name string) string {
	return p.inside("snapshot/"+name, filepath.Join(dir, name))
}

// files are those that a jail holds.
func (p place) files() []linux.CellFile {
	files := []linux.CellFile{
		{Name: "run", Path: p.sockets(), Write: true},
		{Name: "log", Path: p.log(), Write: true},
		{Name: "metrics", Path: p.metrics(), Write: true},
	}
	if p.from == "" {
		files = append(files, linux.CellFile{Name: "kernel", Path: p.m.Kernel}, linux.CellFile{Name: "initrd", Path: p.m.Initrd})
	}
	for i, d := range p.m.Disks {
		files = append(files, linux.CellFile{Name: "disk" + strconv.Itoa(i), Path: d.Path, Write: !d.ReadOnly})
	}
	for _, name := range []string{snapshotState, snapshotMemory} {
		f := linux.CellFile{Name: "snapshot/" + name} // over which a snapshot's file is mounted when there is one
		if p.from != "" {
			f.Path = filepath.Join(p.from, name)
		}
		files = append(files, f)
	}
	return files
}

// prepare makes what a VMM needs, and lets its user at its files. Everything lies in
// directories that are root's.
func (p place) prepare() error {
	for _, dir := range []string{p.sockets(), filepath.Join(p.m.RunDir, jailDir)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(p.log(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Remove(p.metrics()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := linux.MakeFIFO(p.metrics()); err != nil {
		return err
	}
	if !p.jailed {
		return nil
	}
	own := []string{p.log(), p.metrics()}
	read := []string{p.m.Kernel, p.m.Initrd}
	if p.from != "" {
		read = nil
		own = append(own, filepath.Join(p.from, snapshotState), filepath.Join(p.from, snapshotMemory))
	}
	for _, d := range p.m.Disks {
		switch {
		case d.Block: // a node of the jail's own
		case d.ReadOnly:
			read = append(read, d.Path)
		default:
			own = append(own, d.Path)
		}
	}
	for _, path := range own {
		if err := os.Lchown(path, int(p.m.UID), int(p.m.UID)); err != nil {
			return fmt.Errorf("give the VMM its file: %w", err)
		}
	}
	for _, path := range read {
		if err := vmm.Readable(path); err != nil {
			return err
		}
	}
	if p.m.NIC != nil {
		return linux.OwnTap(p.m.NIC.Tap, p.m.UID)
	}
	return nil
}
