package host

import (
	"strings"
	"testing"

	"banger/internal/hosttest"
)

// memoryScript runs a VM, shows its limits, changes them, has the clock jump, and takes
// away the memory that the VM has.
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
./banger vm set m --io read-iops=1000,write-bps=20M
echo "io now $(cat $dir/io.max)"
./banger vm set m --io none
echo "io at last $(cat $dir/io.max)"

for jump in "+400 days" "-800 days" "+400 days"; do
	date --set "$jump" >/dev/null
	./banger vm exec m -- echo "after $jump"
	./banger system stop >/dev/null
	test "$(field pid)" = "$pid" # adopted
	./banger vm exec m -- echo "adopted after $jump"
done
test "$(cat $dir/memory.current)" -lt "$(cat $dir/memory.max)"
echo 32M >$dir/memory.max
for i in $(seq 600); do
	test "$(field state)" = stopped && break
	sleep 0.1
done
./banger vm show m | grep '^last error'
./banger vm delete --force m
./banger system stop
`

// limitsAndClock has limits be as asked for, also where they change while the VM runs; the
// host's clock jump by years, of which VM and daemon take no notice; and a VMM need more
// memory than it may have: it is killed, and its VM says so.
func limitsAndClock(t *testing.T, v *hosttest.HostVM) {
	said := v.Must(t, memoryScript)
	for _, want := range []string{"cpu 200000 100000\n", "tasks 129\n", " wbps=52428800 ", "riops=1000", "wbps=20971520", "io at last \n",
		"\nafter +400 days\nadopted after +400 days\nafter -800 days\nadopted after -800 days\nafter +400 days\nadopted after +400 days\n", "last error  out of memory: the VMM needed more than the 32 MiB that it may have"} {
		if !strings.Contains(said, want) {
			t.Errorf("want %q in:\n%s", want, said)
		}
	}
}
