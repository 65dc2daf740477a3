package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/hosttest"
)

// memoryFiles are what the test needs in the VM: the programs, and a kernel and an image.
func memoryFiles() map[string]string {
	return map[string]string{
		"oom/banger":  filepath.Join(os.Getenv("BANGER_BIN"), "banger"),
		"oom/bangerd": filepath.Join(os.Getenv("BANGER_BIN"), "bangerd"),
		"oom/state":   os.Getenv("BANGER_FIXTURE"),
	}
}

// memoryScript runs a VM, shows its limits, and takes away the memory that it has.
const memoryScript = `
export BANGER_STATE_DIR=/root/oom/state BANGER_RUN_DIR=/run/oom BANGER_CONFIG=/root/oom/config.toml
cd /root/oom
./banger vm run --name m --memory 256M --net none --disk 0 --io write-bps=50M -- true
field() { ./banger vm show m --json | sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p"; }
pid=$(field pid)
dir=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
echo "cpu $(cat $dir/cpu.max)"
echo "tasks $(cat $dir/pids.max)"
echo "io $(cat $dir/io.max)"
test "$(cat $dir/memory.current)" -lt "$(cat $dir/memory.max)"
echo 32M >$dir/memory.max
for i in $(seq 600); do
	test "$(field state)" = stopped && break
	sleep 0.1
done
echo "error $(field last_error)"
./banger vm delete --force m
./banger system stop
`

// A VMM that needs more memory than it may have is killed, and its VM says so.
func outOfMemory(t *testing.T, v *hosttest.HostVM) {
	said := v.Must(t, memoryScript)
	for _, want := range []string{"cpu 200000 100000\n", "tasks 129\n", " wbps=52428800 ", "error out of memory: the VMM needed more than the 32 MiB that it may have\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("want %q in:\n%s", want, said)
		}
	}
}
