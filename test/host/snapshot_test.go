package host

import (
	"strconv"
	"strings"
	"testing"

	"banger/internal/hosttest"
)

// smallImage makes an image of a shell and what it needs for the tests, in the current
// directory: one of the distribution takes minutes to be copied without hardware
// virtualization.
const smallImage = `
programs="/bin/sh /bin/cat /bin/df /bin/ls /bin/grep /bin/sync /usr/bin/sort"
libraries=$(ldd $programs | grep -o '/lib[^ ]*' | sort -u)
mkdir -p tree/dev tree/proc tree/sys tree/tmp tree/run tree/etc tree/root tree/bin
for file in $programs $libraries; do
	mkdir -p "tree$(dirname "$file")"
	cp -L "$file" "tree$file"
done
ln -s cat tree/bin/meow
ln tree/bin/cat tree/bin/purr
chmod 01777 tree/tmp
chown 7:8 tree/etc
tar -C tree -cf small.tar .
banger image import small small.tar
`

// snapshots has a VM with a root of one block device, on a kernel with device-mapper,
// with KVM. It lives through growth, a new daemon, a stop and the host's power cut.
func snapshots(t *testing.T, v *hosttest.HostVM) {
	i := installation{v, "snapshot"}
	banger := func(script string) string {
		t.Helper()
		return i.must(t, script)
	}
	megabytes := func() int {
		t.Helper()
		fields := strings.Fields(banger("banger vm exec a -- df -BMB --output=size /"))
		n, err := strconv.Atoi(strings.TrimSuffix(fields[len(fields)-1], "MB"))
		if err != nil {
			t.Errorf("df: %q", fields)
		}
		return n
	}
	kept := func(want string) {
		t.Helper()
		if got := banger("banger vm exec a -- sh -c 'ls /srv; cat /kept'"); got != want {
			t.Errorf("the root holds %q, want %q", got, want)
		}
	}
	banger(smallImage)
	got := banger(`banger vm run --name a --image small --net none --memory 256M --disk 0 --root-disk dm-snapshot --root-size 300M -- sh -ec '
		ls -lnd /etc /tmp | while read mode links user group rest; do echo $mode $user $group; done
		ls -l /bin/meow | grep -o "meow.*"
		ls -i /bin/cat /bin/purr | while read inode name; do echo $inode; done | sort -u | { read one; ! read two && echo linked; }
		echo kept >/kept; >/srv; sync'`)
	if want := "drwxr-xr-x 7 8\ndrwxrwxrwt 0 0\nmeow -> cat\nlinked"; got != want {
		t.Errorf("the root was copied as:\n%s\nwant:\n%s", got, want)
	}
	if got := banger("ls /sys/block/dm-*/dm/name | wc -l; banger vm show a"); !strings.HasPrefix(got, "2\n") || !strings.Contains(got, "dm-snapshot") {
		t.Errorf("while it runs: %s", got)
	}
	if n := megabytes(); n < 250 || n > 330 {
		t.Errorf("the root has %d MB", n)
	}
	banger("banger vm set a --root-size 600M")
	if n := megabytes(); n < 540 {
		t.Errorf("grown, the root has %d MB", n)
	}
	banger(killDaemon + "banger vm exec a -- sh -c 'echo more >>/kept; sync'")
	banger("banger vm set a --root-size 700M") // of a VM that was adopted
	if n := megabytes(); n < 640 {
		t.Errorf("grown again, the root has %d MB", n)
	}
	kept("/srv\nkept\nmore")
	banger("banger vm exec a -- sh -c 'echo there >/run/memory; echo late >>/kept'; banger vm suspend a")
	if got := v.Must(t, "ls /sys/block/dm-*/dm/name 2>/dev/null || true"); got != "" {
		t.Errorf("suspended, it has devices: %s", got)
	}
	banger("banger vm start a; banger vm exec a -- grep there /run/memory; banger vm exec a -- sync")
	kept("/srv\nkept\nmore\nlate")
	v.CutPower(t)
	banger("banger vm start a")
	kept("/srv\nkept\nmore\nlate")
	if n := megabytes(); n < 640 {
		t.Errorf("after a power cut, the root has %d MB", n)
	}
	banger("banger vm stop a; banger vm set a --root-size 40G; banger vm start a") // more than the tables of the base have room for
	if n := megabytes(); n < 40000 {
		t.Errorf("grown while it was stopped, the root has %d MB", n)
	}
	kept("/srv\nkept\nmore\nlate")
	banger("banger vm stop a; banger vm promote a again; banger vm run --rm --image again --net none --disk 0 -- cat /kept | grep more")
	banger("banger vm reset a; banger vm start a; ! banger vm exec a -- cat /kept")
	banger("banger vm delete --force a; banger system stop")
	i.checkNothingLeft(t)
}
