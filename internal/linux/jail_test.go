package linux_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/linux"
)

// inJail is what a process does that tries to get at the host, and what it says.
const inJail = `
echo "user $(id -u) $(id -g) $(id -G)"
echo "root" *
cat "$1/shown"
for f in "$1/shown" "$1/hidden" /new /usr/new; do
  if (echo x >"$f") 2>/dev/null; then echo "wrote $f"; fi
done
if (cat "$1/hidden") 2>/dev/null; then echo "read what is hidden"; fi
if (echo x >/dev/null); then echo "null"; fi
if kill -0 "$2" 2>/dev/null; then echo "reached a process outside"; fi
echo "process $$"
echo x >&9
read go
`

func TestJail(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir, root := t.TempDir(), t.TempDir()
	for _, name := range []string{"shown", "hidden"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name+"\n"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	handed, err := os.Create(filepath.Join(dir, "handed"))
	if err != nil {
		t.Fatal(err)
	}
	defer handed.Close()
	const inherited = 200 // without O_CLOEXEC
	if err := syscall.Dup3(int(handed.Fd()), inherited, 0); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(inherited)
	before := mounts(t)
	j := linux.Jail{UID: 0x7fff1234, Root: root, See: []string{filepath.Join(dir, "shown")}, Devices: []string{"/dev/null"}}
	for _, path := range []string{"/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"} {
		if _, err := os.Lstat(path); err == nil {
			j.See = append(j.See, path)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", inJail, "sh", dir, fmt.Sprint(os.Getpid()))
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin"}
	cmd.ExtraFiles = []*os.File{6: handed} // the last one is descriptor 9
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said, complained strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &complained
	if err := j.Start(cmd); err != nil {
		t.Fatal(err)
	}
	checkConfined(t, cmd.Process.Pid)
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", cmd.Process.Pid, inherited)); err == nil {
		t.Error("it has a file that it was not handed")
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts of the host: before\n%s\nafter\n%s", before, after)
	}
	_, _ = io.WriteString(in, "\n")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &complained)
	}
	uid := fmt.Sprint(0x7fff1234)
	for _, want := range []string{"user " + uid + " " + uid + " " + uid + "\n", "shown\n", "null\n", "process 1\n"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it did not say %q", want)
		}
	}
	for _, never := range []string{"wrote", "read what", "reached", " proc ", " sys ", " home "} {
		if strings.Contains(said.String(), never) {
			t.Errorf("it said %q", never)
		}
	}
	if text, err := os.ReadFile(handed.Name()); err != nil || string(text) != "x\n" {
		t.Errorf("in the file that it was handed: %q, %v", text, err)
	}
	if t.Failed() {
		t.Logf("it said:\n%s%s", &said, &complained)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("the host sees the jail: %v, %v", left, err)
	}
}

// What cannot be shown keeps a process from being started.
func TestJailWithoutFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	for name, j := range map[string]linux.Jail{
		"missing": {UID: 0x7fff1234, Root: t.TempDir(), See: []string{"/no/such/file"}},
		"root":    {Root: t.TempDir()},
		"no null": {UID: 0x7fff1234, Root: t.TempDir(), Devices: []string{"/etc/passwd"}},
	} {
		cmd := exec.Command("/bin/true")
		if err := j.Start(cmd); err == nil {
			t.Errorf("%s: started", name)
			_ = cmd.Wait()
		}
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// checkConfined looks at a process from outside.
func checkConfined(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("want %q in its status:\n%s", want, status)
		}
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc"} {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		if ours, err := os.Readlink("/proc/self/ns/" + ns); err != nil || its == ours {
			t.Errorf("it is in our %s namespace: %v", ns, err)
		}
	}
}
