package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"banger/internal/hosttest"
)

// failingFiles are what failingDisk needs in the VM: the programs, and a disk with a
// state directory on it.
func failingFiles(t *testing.T) map[string]string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", os.Getenv("BANGER_FIXTURE"), image, "2G").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return map[string]string{
		"failing/banger":   filepath.Join(os.Getenv("BANGER_BIN"), "banger"),
		"failing/bangerd":  filepath.Join(os.Getenv("BANGER_BIN"), "bangerd"),
		"failing/disk.img": image,
	}
}

// failingScript has the disk of the state directory fail under a VM that runs, and then
// be what it was.
const failingScript = `
export PATH=/root/failing:$PATH BANGER_STATE_DIR=/mnt/failing BANGER_RUN_DIR=/run/failing BANGER_CONFIG=/root/failing/none
loop=$(losetup --show --find /root/failing/disk.img)
sectors=$(blockdev --getsz $loop)
dmsetup create failing --table "0 $sectors linear $loop 0"
turn() {
	dmsetup suspend --nolockfs --noflush failing
	dmsetup reload failing --table "$1"
	dmsetup resume failing
}
mkdir -p /mnt/failing
mount /dev/mapper/failing /mnt/failing
daemon() { banger system status | sed -n 's/^pid *//p'; }
try() {
	status=0
	said=$("$@" 2>&1) || status=$?
	echo "[$status] $said"
}
banger vm run --name m --memory 256M --net none --disk 0 -- sh -c 'echo kept >/srv/kept; sync'
banger vm create --name other --memory 256M --net none --disk 0 --quiet >/dev/null
banger vm exec m -- echo alive # which the guest has in its memory from then on
before=$(daemon)

turn "0 $sectors error"
echo "list: $(try banger vm list --quiet | wc -l)"
echo "create: $(try banger vm create --name third --net none)"
echo "start: $(try banger vm start other)"
echo "grow: $(try banger vm set m --root-size 20G)"
echo "exec: $(try banger vm exec m -- echo alive)"
echo "doctor: $(try banger doctor --quiet)"
echo "stop: $(try banger vm stop --timeout 30s m)"
echo "show: $(try banger vm show m | grep -e ^state -e '^last error')"
test "$(daemon)" = "$before" && echo "the daemon lives"

turn "0 $sectors linear $loop 0"
kill -9 "$before"
umount /mnt/failing
e2fsck -f -y /dev/mapper/failing >/dev/null || test $? -le 2
mount /dev/mapper/failing /mnt/failing
banger vm list
echo "after: $(banger vm show m | grep -e ^state -e '^last error')"
banger vm start m
echo "kept: $(banger vm exec m -- cat /srv/kept)"
banger vm delete --force m other
banger system stop
ls /mnt/failing/vms /run/failing/vm /sys/fs/cgroup/banger.slice/*.scope 2>/dev/null || true
umount /mnt/failing
dmsetup remove failing
losetup --detach $loop
`

// failingDisk has every read and write fail: what is asked of the daemon is refused for
// that reason, and nothing of it is left when the disk is back.
func failingDisk(t *testing.T, v *hosttest.HostVM) {
	said := v.Must(t, failingScript)
	t.Log(said)
	for _, want := range []string{
		`(?m)^list: 2$`,
		`(?m)^create: \[\d+\] .*(I/O error|input/output error)`,
		`(?m)^start: \[\d+\] .*(I/O error|input/output error)`,
		`(?m)^grow: \[\d+\] .*I/O error`,
		`(?m)^exec: \[0\] alive$`,
		`(?m)^ +error +the disk of /mnt/failing fails: .*input/output error`,
		`(?m)^stop: \[\d+\] .*I/O error`,
		`(?m)^show: state +stopped\nlast error +stop VM "m": .*I/O error`,
		`(?m)^the daemon lives$`,
		`(?m)^kept: kept$`,
	} {
		if !regexp.MustCompile(want).MatchString(said) {
			t.Errorf("want %q in:\n%s", want, said)
		}
	}
}
