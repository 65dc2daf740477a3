package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// booted waits, in a guest, until systemd has started everything, and prints how it is.
const booted = `while :; do
	state=$(systemctl is-system-running --wait 2>/dev/null)
	case $state in running | degraded) echo "$state"; exit ;; esac
	sleep 0.5
done`

// TestSystemd runs an image's own init with Docker under it: the agent serves from
// before its start to after its end, and every way down leaves the disks clean.
func TestSystemd(t *testing.T) {
	h := hosttest.NewSystemd(t)
	h.Must(t, "vm", "run", "--init", "--image", "debian-systemd", "--memory", "1G", "--name", "s", "--", "true")
	in := func(script string) string {
		t.Helper()
		return h.Must(t, "vm", "exec", "s", "--", "sh", "-c", script)
	}
	if got := in("cat /proc/1/comm /etc/hostname /proc/self/cgroup"); got != "systemd\ns\n0::/banger" && got != "init\ns\n0::/banger" {
		t.Errorf("process 1, host name, cgroup: %q", got)
	}
	before := time.Now()
	state := in(booted)
	t.Logf("systemd is %s %.0f s after the agent", state, time.Since(before).Seconds())
	if failed := in("systemctl list-units --failed --plain --no-legend"); failed != "" {
		t.Errorf("units that failed:\n%s", failed)
	}
	t.Run("docker", func(t *testing.T) {
		if got := in("docker info --format '{{.Driver}} {{.CgroupDriver}}'"); got != "overlay2 systemd" {
			t.Errorf("storage and cgroups: %q", got)
		}
		container(t, h, "s")
	})

	t.Run("guest powers off", func(t *testing.T) {
		in("systemctl poweroff")
		stopped(t, h, "s", "")
	})
	t.Run("guest reboots", func(t *testing.T) {
		h.Must(t, "vm", "start", "s")
		in("until systemctl reboot 2>/dev/null; do sleep 0.5; done")
		stopped(t, h, "s", "rebooted")
	})
	t.Run("stop at once", func(t *testing.T) {
		h.Must(t, "vm", "start", "s")
		h.Must(t, "vm", "stop", "s")
		stopped(t, h, "s", "")
	})
	h.Must(t, "vm", "delete", "s")
	nothingLeft(t, h)
}

// TestDocker runs Docker where nothing but the agent is: no init, no kmod. The kernel
// loads what it needs on demand.
func TestDocker(t *testing.T) {
	h := hosttest.NewSystemd(t)
	h.Must(t, "vm", "run", "--image", "debian-systemd", "--memory", "1G", "--name", "d", "--", "sh", "-ec", `
		test ! -e /sbin/modprobe
		for module in br_netfilter nf_tables; do ! grep -q "^$module " /proc/modules; done
		ip link add br9 type bridge && ip link add v0 type veth peer name v1 && ip link del br9 && ip link del v0
		iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE && iptables -t nat -F
		dockerd >/tmp/dockerd.log 2>&1 &
		i=0; until docker version >/dev/null 2>&1; do
			i=$((i+1)); if [ $i -gt 240 ]; then tail -5 /tmp/dockerd.log >&2; exit 1; fi
			sleep 0.5
		done`)
	container(t, h, "d")
	in := func(script string) string { return h.Must(t, "vm", "exec", "d", "--", "sh", "-c", script) }
	if got := in("stat -f -c %T /var/lib/docker / && df /var/lib/docker /var/lib/containerd | awk 'NR>1{print $1}' | uniq"); got != "ext2/ext3\noverlayfs\n/dev/vdb" {
		t.Errorf("file systems: %q", got)
	}
	h.Must(t, "vm", "stop", "d")
	stopped(t, h, "d", "")

	t.Run("no init", func(t *testing.T) {
		h.Must(t, "vm", "create", "--init", "--image", "debian", "--name", "none")
		if r := h.Banger(t, "vm", "start", "none"); r.Exit == 0 || !strings.Contains(r.Stderr, "no init of its own") {
			t.Errorf("exit status %d, %s", r.Exit, r.Stderr)
		}
		stopped(t, h, "none", "no init of its own")
	})
	h.Must(t, "vm", "delete", "d", "none")
	nothingLeft(t, h)
}

// stopped waits until a VM has stopped, with the last error as wanted, and its disks
// unmounted.
func stopped(t *testing.T, h *hosttest.Host, name, lastError string) {
	t.Helper()
	var vm struct {
		ID, State string
		LastError string `json:"last_error"`
	}
	hosttest.Eventually(t, 90*time.Second, "the VM stops", func() bool {
		if err := json.Unmarshal([]byte(h.Must(t, "vm", "show", "--json", name)), &vm); err != nil {
			t.Fatal(err)
		}
		return vm.State == "stopped"
	})
	if lastError == "" && vm.LastError != "" || !strings.Contains(vm.LastError, lastError) {
		t.Errorf("last error %q, want %q", vm.LastError, lastError)
	}
	disks, err := filepath.Glob(filepath.Join(h.Paths.State, "vms", vm.ID, "*.ext4"))
	if err != nil || len(disks) == 0 {
		t.Fatalf("disks %q, %v", disks, err)
	}
	for _, disk := range disks {
		out, err := exec.Command("dumpe2fs", "-h", disk).Output()
		if err != nil || !bytes.Contains(out, []byte("clean")) || bytes.Contains(out, []byte("needs_recovery")) {
			t.Errorf("%s is not clean (%v):\n%.1000s", disk, err, out)
		}
	}
}

// container has Docker in a VM load what `image export` makes of an image that came from
// an archive of Docker's, and run a container of it on a network of its own.
func container(t *testing.T, h *hosttest.Host, name string) {
	t.Helper()
	if r := h.Pipe(t, imageArchive(t), "image", "import", "hello", "-"); r.Exit != 0 {
		t.Fatalf("import: %s", r.Stderr)
	}
	exported := filepath.Join(t.TempDir(), "hello.tar")
	h.Must(t, "image", "export", "hello", exported)
	h.Must(t, "image", "rm", "hello")
	h.Must(t, "vm", "cp", exported, name+":/tmp/hello.tar")
	if got := h.Must(t, "vm", "exec", name, "--", "docker", "load", "-i", "/tmp/hello.tar"); !strings.Contains(got, "hello:latest") {
		t.Fatalf("docker load says %q", got)
	}
	before := time.Now()
	got := h.Must(t, "vm", "exec", name, "--", "docker", "run", "--rm", "--hostname", "c", "--memory", "64m", "hello", "a b")
	t.Logf("docker run took %.1f s", time.Since(before).Seconds())
	if !strings.HasPrefix(got, "hello [a b] c [127.0.0.1/8 172.") {
		t.Errorf("the container said %q", got)
	}
}

// imageArchive makes an archive as docker save does, of one static program.
func imageArchive(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hello")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, "./testdata/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the container's program: %v: %s", err, out)
	}
	code, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	layer := archiveOf(t, map[string]string{"hello": string(code)})
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/hello"]},`+
		`"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256([]byte(layer)))
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(config)))
	return archiveOf(t, map[string]string{
		"manifest.json":   fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["hello:latest"],"Layers":["%[1]s/layer.tar"]}]`, id),
		id + ".json":      config,
		id + "/layer.tar": layer,
	})
}

// archiveOf is a tar archive of files, some of which come first.
func archiveOf(t *testing.T, files map[string]string, first ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	rest := slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(name string) bool { return slices.Contains(first, name) })
	for _, name := range append(first, rest...) {
		content := files[name]
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
