package host

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/hosttest"
)

// programs are what an installation in a directory of the host in the VM needs: the
// programs and the state directory of the fixture.
func programs(dir string) map[string]string {
	return map[string]string{
		dir + "/banger":  filepath.Join(os.Getenv("BANGER_BIN"), "banger"),
		dir + "/bangerd": filepath.Join(os.Getenv("BANGER_BIN"), "bangerd"),
		dir + "/state":   os.Getenv("BANGER_FIXTURE"),
	}
}

// installation is one that programs has put into the host in the VM.
type installation struct {
	v    *hosttest.HostVM
	name string // of its directory
}

func (i installation) dir() string { return hosttest.HostVMFiles + "/" + i.name }

// must runs a script in the installation's directory, where banger is its own.
func (i installation) must(t *testing.T, script string) string {
	t.Helper()
	return i.v.Must(t, "cd "+i.dir()+"; export PATH=$PWD:$PATH BANGER_STATE_DIR=$PWD/state BANGER_RUN_DIR=/run/"+i.name+" BANGER_CONFIG=$PWD/none\n"+script)
}

// killDaemon kills the daemon; the next command of banger starts another one.
const killDaemon = "kill -9 $(banger system status | sed -n 's/^pid *//p'); "

// checkNothingLeft looks for what VMs leave on the host. No daemon may run.
func (i installation) checkNothingLeft(t *testing.T) {
	t.Helper()
	state, run := i.dir()+"/state/vms", "/run/"+i.name+"/vm"
	got := i.v.Must(t, "ls /sys/block/dm-*/dm/name /sys/block/loop*/loop/backing_file 2>/dev/null || true; ls /sys/class/net | grep '^b[dt]' || true; pgrep -l 'qemu|firecracker' || true; ls "+state+" "+run)
	if want := state + ":\n\n" + run + ":"; got != want {
		t.Errorf("left on the host:\n%s", got)
	}
}
