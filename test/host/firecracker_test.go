package host

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/hosttest"
)

// TestFirecracker has a real Firecracker in the VM, which has KVM: it runs the suite of
// drivers on it, then the daemon's VMs, and compares it with a bare one. make test-firecracker.
func TestFirecracker(t *testing.T) {
	binary, jailer := os.Getenv("BANGER_FIRECRACKER"), os.Getenv("BANGER_JAILER")
	if binary == "" || jailer == "" {
		t.Skip("Firecracker was not run: BANGER_FIRECRACKER and BANGER_JAILER do not name its programs")
	}
	dir := hosttest.HostVMFiles + "/firecracker/"
	files := map[string]string{
		"firecracker/suite":       hosttest.BuildTests(t, "internal/vmm/firecracker"),
		"firecracker/bench":       hosttest.BuildTests(t, "test/bench"),
		"firecracker/firecracker": binary,
		"firecracker/jailer":      jailer,
		"firecracker/vmlinux":     os.Getenv("BANGER_TEST_VMLINUX"),
		"firecracker/initrd":      os.Getenv("BANGER_TEST_INITRD"),
	}
	maps.Copy(files, programs("firecracker"))
	v := hosttest.NewHostVM(t, files)
	env := []string{"BANGER_FIRECRACKER=" + dir + "firecracker", "BANGER_JAILER=" + dir + "jailer", "BANGER_TEST_VMLINUX=" + dir + "vmlinux", "BANGER_TEST_INITRD=" + dir + "initrd"}
	t.Run("drivers", func(t *testing.T) { v.RunTests(t, filepath.Join(dir, "suite"), "^TestConformance$", env...) })
	t.Run("daemon", func(t *testing.T) { firecrackerVMs(t, installation{v, "firecracker"}) })
	t.Run("compared", func(t *testing.T) {
		got := v.Must(t, strings.Join(env, " ")+" "+dir+"bench -test.run '^$' -test.bench '^BenchmarkFirecracker$' -test.benchtime 1x")
		t.Log(got)
		for _, name := range []string{"start", "overhead", "wake"} {
			if !strings.Contains(got, "firecracker-"+name+" ratio=") {
				t.Errorf("%s was not compared", name)
			}
		}
	})
}

// firecrackerVMs has the daemon take Firecracker by itself, jailed, for VMs on the
// network, with a work disk, and on both kinds of root.
func firecrackerVMs(t *testing.T, i installation) {
	banger := func(script string) string {
		t.Helper()
		return i.must(t, script)
	}
	banger(smallImage)
	banger("banger vm run --name a --image small --memory 256M --disk 64M -- sh -c 'echo kept >/root/kept; echo there >/run/memory; echo >/srv; sync'")
	show := banger("banger vm show a")
	t.Log(show)
	if !strings.Contains(show, "firecracker/kvm") {
		t.Error("another VMM was taken")
	}
	if got := banger("ps -o user=,args= -C firecracker"); strings.HasPrefix(got, "root") || !strings.Contains(got, "firecracker") {
		t.Errorf("its VMM: %s", got)
	}
	answers := `ip=$(banger vm show a --json | grep -o '"ip": *"[^"]*' | grep -o '[0-9.]*$'); bash -c "exec 3<>/dev/tcp/$ip/22; head -c 8 <&3"`
	if got := banger(answers); got != "SSH-2.0-" {
		t.Errorf("on the network it says %q", got)
	}
	banger("banger vm pause a; banger vm resume a; banger vm exec a -- grep there /run/memory")
	banger(killDaemon + "banger vm exec a -- grep there /run/memory")
	banger("banger vm set a --disk 128M; banger vm exec a -- df -BM --output=size /root | grep 1..M")
	banger("banger vm suspend a; ! pgrep firecracker; banger vm start a; banger vm exec a -- grep there /run/memory")
	if got := banger(answers); got != "SSH-2.0-" {
		t.Errorf("awake, on the network it says %q", got)
	}
	banger("banger vm stop a; banger vm start a; ! banger vm exec a -- cat /run/memory; banger vm exec a -- cat /root/kept")
	banger("banger vm stop a; banger vm promote a again; banger vm run --rm --image again --net none --disk 0 -- ls /srv")
	banger("banger vm run --rm --image small --root-disk dm-snapshot --root-size 300M --disk 0 -- sh -c 'echo >/srv/more; sync'")
	if got := banger("banger vm run --rm --image small --cpus 2 --io read-bps=50M -- cat /proc/cpuinfo | grep -c ^processor"); got != "2" {
		t.Errorf("of 2 CPUs it has %s", got)
	}
	banger("banger vm delete a; banger system stop")
	i.checkNothingLeft(t)
}
