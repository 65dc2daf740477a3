package vmmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// checkConfined looks from outside at what a VMM could do to its host, were its guest
// to take it over.
func (m *machine) checkConfined(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	uid := fmt.Sprint(m.UID)
	for name, want := range map[string]string{
		"Uid": uid + " " + uid + " " + uid + " " + uid, "Gid": uid + " " + uid + " " + uid + " " + uid, "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000", "CapBnd": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := statusField(string(status), name); got != want {
			t.Errorf("%s of the VMM is %q, want %q", name, got, want)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	others := t.TempDir() // as the directory of another VM
	for _, hidden := range []string{"/etc/passwd", "/root", "/proc/1", "/sys/kernel", "/dev/net", others} {
		if _, err := os.Lstat(root + hidden); err == nil {
			t.Errorf("the VMM sees %s", hidden)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 5 && !strings.HasPrefix(fields[5], "ro,") && !m.mayWrite(fields[3]) {
			t.Errorf("the VMM may write to %s, which is %s", fields[4], fields[3])
		}
	}
}

// mayWrite says whether a mount, of a file of this path in its file system, is of a disk
// that the machine may write to, or of a file beside its log.
func (m *machine) mayWrite(path string) bool {
	own := []string{m.Log, filepath.Join(filepath.Dir(m.Log), "firecracker.log"), filepath.Join(filepath.Dir(m.Log), "firecracker.metrics")}
	for _, d := range m.Disks {
		if !d.ReadOnly {
			own = append(own, d.Path)
		}
	}
	// Its file system need not be mounted at /; the names of these directories are random.
	return slices.ContainsFunc(own, func(o string) bool { return len(path) > len(filepath.Base(o))+1 && strings.HasSuffix(o, path) })
}

// statusField returns a field of proc_pid_status(5), with single spaces.
func statusField(status, name string) string {
	for line := range strings.Lines(status) {
		if field, value, _ := strings.Cut(line, ":"); field == name {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return "missing"
}
