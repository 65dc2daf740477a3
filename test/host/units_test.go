package host

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// olderVersion is that of the build that is replaced by that under test.
const olderVersion = "v0-older"

// olderBuild builds the daemon and the command line as another version, with another build
// of the agent within the daemon. The directory has what make install needs.
func olderBuild(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(root, "internal", "agent", "server.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	agent, overlaid, overlay := filepath.Join(dir, "banger-agent"), filepath.Join(dir, "server.go"), filepath.Join(dir, "overlay.json")
	embedded := filepath.Join(root, "internal", "agentbin", "bin", "banger-agent")
	different := string(text) + "\nfunc init() { _, _ = os.Stat(\"/" + olderVersion + "\") }\n"
	instead, err := json.Marshal(map[string]map[string]string{"Replace": {source: overlaid, embedded: agent}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{overlaid: different, overlay: string(instead)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"banger-agent", "bangerd", "banger"} {
		out := filepath.Join(dir, "bin", program)
		if program == "banger-agent" {
			out = agent
		}
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-overlay", overlay, "-ldflags", "-s -w -X main.version="+olderVersion, "-o", out, "./cmd/"+program)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s as another version: %v: %s", program, err, said)
		}
	}
	return filepath.Join(dir, "bin")
}

// installFiles are what the tests of the units need in the VM: this build and an older
// one, each with what make install takes, and the state directory of the fixture.
func installFiles(t *testing.T) map[string]string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"this/bin": os.Getenv("BANGER_BIN"), "older/bin": olderBuild(t, root), "state": os.Getenv("BANGER_FIXTURE"),
	}
	for _, name := range []string{"Makefile", "scripts", "systemd"} {
		files["this/"+name], files["older/"+name] = filepath.Join(root, name), filepath.Join(root, name)
	}
	return files
}

// running is a VM, and what tells whether it still is the same run of it.
const running = "banger vm exec a -- cat /proc/sys/kernel/random/boot_id"

// units has banger installed as README says, and has its daemon go and come in all ways
// while a VM runs. The tests build on each other.
func units(t *testing.T, v *hosttest.HostVM) {
	if !t.Run("install", func(t *testing.T) { install(t, v) }) {
		return
	}
	boot := v.Must(t, running)
	same := func(t *testing.T) {
		t.Helper()
		if now := v.Must(t, running); now != boot {
			t.Errorf("the VM is in boot %s, was in %s", now, boot)
		}
	}
	t.Run("restart", func(t *testing.T) {
		before := mainPID(t, v)
		v.Must(t, "systemctl restart bangerd.service")
		if now := mainPID(t, v); now == before || now == "0" {
			t.Errorf("process %s before, %s after", before, now)
		}
		same(t)
	})
	t.Run("stop and activation", func(t *testing.T) {
		v.Must(t, "systemctl stop bangerd.service 2>/dev/null; ! systemctl --quiet is-active bangerd.service; systemctl --quiet is-active banger-*.scope")
		same(t) // the command line waits at the socket
		v.Must(t, "systemctl --quiet is-active bangerd.service")
	})
	t.Run("crash", func(t *testing.T) {
		before := mainPID(t, v)
		v.Must(t, "kill -9 "+before)
		hosttest.Eventually(t, time.Minute, "systemd starts the daemon again", func() bool {
			now := mainPID(t, v)
			return now != before && now != "0"
		})
		same(t)
	})
	t.Run("upgrade", func(t *testing.T) { upgrade(t, v); same(t) })
	if all {
		t.Run("watchdog", func(t *testing.T) { watchdog(t, v); same(t) })
	}
	t.Run("reboot", func(t *testing.T) { // the guest is asked to power off, and writes what it has
		rebooted(t, v, "echo kept >/root/kept", v.Reboot, "the host was shut down")
	})
	if all {
		t.Run("power cut", func(t *testing.T) {
			rebooted(t, v, "echo kept >/root/kept; sync", v.CutPower, "the host was restarted while the VM ran")
		})
		t.Run("uninstall", func(t *testing.T) { uninstall(t, v) })
	}
}

// mainPID is the process of the daemon, as systemd knows it.
func mainPID(t *testing.T, v *hosttest.HostVM) string {
	t.Helper()
	return v.Must(t, "systemctl show --property MainPID --value bangerd.service")
}

// install installs the older build and starts a VM, with KVM.
func install(t *testing.T, v *hosttest.HostVM) {
	// The state directory lies on a file system that survives, as on a real host.
	v.Must(t, `cat >/etc/systemd/system/var-lib-banger.mount <<-X
		[Mount]
		What=`+hosttest.HostVMFiles+`/state
		Where=/var/lib/banger
		Type=none
		Options=bind
		[Install]
		WantedBy=local-fs.target
	X
	mkdir -p /var/lib/banger
	systemctl --quiet enable --now var-lib-banger.mount
	make --no-print-directory -C `+hosttest.HostVMFiles+`/older install`)
	v.Must(t, "systemctl --quiet is-active bangerd.service bangerd.socket && systemctl --quiet is-enabled bangerd.service bangerd.socket")
	if got := v.Must(t, "stat -c '%A %U:%G' /run/banger/bangerd.sock"); got != "srw-rw---- root:banger" {
		t.Errorf("the socket: %s", got)
	}
	if got := v.Must(t, "journalctl --unit bangerd.service --output cat"); !strings.Contains(got, "msg=serving") {
		t.Errorf("the journal does not show the daemon's log:\n%s", got)
	}
	v.Must(t, "banger vm run --name a -- true")
	show := v.Must(t, "banger vm show a")
	if !strings.Contains(show, "qemu/kvm") {
		t.Errorf("the VM does not use KVM:\n%s", show)
	}
	// It is in a scope of its own, limited, and not in the daemon's unit.
	where := v.Must(t, "cat /proc/$(pidof qemu-system-x86_64)/cgroup")
	if !regexp.MustCompile(`^0::/banger\.slice/banger-[0-9a-f]{8}-[0-9a-f]{8}\.scope/vmm$`).MatchString(where) {
		t.Errorf("the VMM is in %s", where)
	}
	if limits := v.Must(t, "cd /sys/fs/cgroup/"+strings.TrimPrefix(where, "0::")+" && cat memory.max pids.max cpu.max"); strings.HasPrefix(limits, "max") || strings.Contains(limits, "\nmax") {
		t.Errorf("the limits of the VMM: %s", limits)
	}
}

// upgrade has this build replace the older one under a running VM.
func upgrade(t *testing.T, v *hosttest.HostVM) {
	const version, agent = "banger system status --json | grep '\"version\"'", "banger vm show a | awk '$1 == \"agent\" { print $2 }'"
	before := v.Must(t, agent)
	if got := v.Must(t, version); !strings.Contains(got, `"`+olderVersion+`"`) || before == "" {
		t.Errorf("before: %s, %q", got, before)
	}
	v.Must(t, "make --no-print-directory -C "+hosttest.HostVMFiles+"/this install")
	after := v.Must(t, agent)
	if got := v.Must(t, version); strings.Contains(got, `"`+olderVersion+`"`) || after != before {
		t.Errorf("after: %s, %s; want this daemon, and the agent that the VM was started with: %s", got, after, before)
	}
	if show := v.Must(t, "banger vm show a"); !regexp.MustCompile(`(?m)^at the next start +agent$`).MatchString(show) {
		t.Errorf("this build's agent does not come with the next start:\n%s", show)
	}
	// The older agent does what it did.
	if got := v.Must(t, "echo x >/tmp/file && banger vm cp /tmp/file a:/srv/file && banger vm exec a -- cat /srv/file"); got != "x" {
		t.Errorf("copied by way of an older agent: %q", got)
	}
}

// watchdog has the daemon stand still.
func watchdog(t *testing.T, v *hosttest.HostVM) {
	defer v.Must(t, "rm -r /etc/systemd/system/bangerd.service.d && systemctl daemon-reload")
	v.Must(t, `mkdir -p /etc/systemd/system/bangerd.service.d
	printf '[Service]\nWatchdogSec=20s\nTimeoutAbortSec=5s\n' >/etc/systemd/system/bangerd.service.d/test.conf
	systemctl daemon-reload; systemctl restart bangerd.service`)
	before := mainPID(t, v)
	// One that answers says so again and again.
	const heard = "systemctl show --property WatchdogTimestampMonotonic --value bangerd.service"
	for range 3 {
		last := v.Must(t, heard)
		hosttest.Eventually(t, time.Minute, "the daemon says that it is alive", func() bool { return v.Must(t, heard) != last })
	}
	v.Must(t, "kill -STOP "+before)
	hosttest.Eventually(t, 3*time.Minute, "systemd replaces a daemon that stands still", func() bool {
		now := mainPID(t, v)
		return now != before && now != "0"
	})
}

// rebooted has the host end while a VM runs, after a script in that VM. Then nothing is
// there but what is on disks, the VM is stopped, says why, and can be started.
func rebooted(t *testing.T, v *hosttest.HostVM, script string, reboot func(testing.TB), why string) {
	v.Must(t, "banger vm exec a -- sh -c 'rm -f /root/kept; sync; "+script+"'")
	reboot(t)
	show := v.Must(t, "banger vm show a")
	if !regexp.MustCompile(`(?m)^state +stopped\nlast error +` + why).MatchString(show) {
		t.Errorf("the VM after its host's end:\n%s", show)
	}
	if left := v.Must(t, "ls -d /sys/fs/cgroup/banger.slice/*.scope /run/banger/vm/* 2>/dev/null || true; ip -o link | grep -v -e ' lo:' -e ' eth0:' || true"); left != "" {
		t.Errorf("left after the host's end:\n%s", left)
	}
	if got := v.Must(t, "banger vm start a && banger vm exec a -- cat /root/kept"); got != "a\nkept" {
		t.Errorf("the VM started again says %q", got)
	}
}

// uninstall refuses while a VM runs, and then leaves what it says.
func uninstall(t *testing.T, v *hosttest.HostVM) {
	const command = "make --no-print-directory -C " + hosttest.HostVMFiles + "/this uninstall"
	if r := v.Run(t, command); r.Exit == 0 || !strings.Contains(r.Stderr, "VMs are running") {
		t.Errorf("with a VM that runs: exit status %d\n%s%s", r.Exit, r.Stdout, r.Stderr)
	}
	v.Must(t, "banger vm stop a")
	if said := v.Must(t, command); !strings.Contains(said, "/var/lib/banger") {
		t.Errorf("it does not say what it leaves: %s", said)
	}
	if left := v.Must(t, "find /usr/local /etc/systemd -name '*banger*' ! -name var-lib-banger.mount; ip -o link | grep -v -e ' lo:' -e ' eth0:' || true"); left != "" {
		t.Errorf("left after uninstall:\n%s", left)
	}
	v.Must(t, "test -e /var/lib/banger/banger.db && systemctl disable --quiet --now var-lib-banger.mount")
	v.Must(t, command+" PURGE=1 && test ! -e /var/lib/banger && test ! -e /run/banger/bangerd.sock && ! getent group banger")
}
