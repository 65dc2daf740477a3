package linux_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/linux"
)

func TestHost(t *testing.T) {
	if id, err := linux.BootID(); err != nil || len(id) != 36 {
		t.Errorf("BootID: %q, %v", id, err)
	}
	if n, err := linux.MemTotal(); err != nil || n < 64<<20 {
		t.Errorf("MemTotal: %d, %v", n, err)
	}
	if khz := linux.TSCKHz(); khz < 500_000 || khz > 10_000_000 {
		t.Errorf("TSCKHz: %d is no rate of a processor of today", khz)
	}
}

// A verdict has to come whatever this host's /dev/kvm is, and twice the same; a host
// that others keep busy may need a few attempts.
func TestProbeKVM(t *testing.T) {
	var first, second error
	for range 5 {
		if first, second = linux.ProbeKVM(t.Context()), linux.ProbeKVM(t.Context()); (first == nil) == (second == nil) {
			break
		}
	}
	if (first == nil) != (second == nil) {
		t.Errorf("two probes disagree: %v; %v", first, second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := linux.ProbeKVM(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled probe says %v", err)
	}
}

func TestUnixSocketAtLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.sock")
	l, err := linux.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	c, err := linux.DialUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	uid, gid, pid, err := linux.PeerCred(s)
	if err != nil || int(uid) != os.Getuid() || int(gid) != os.Getgid() || int(pid) != os.Getpid() {
		t.Errorf("PeerCred: uid %d, gid %d, pid %d, %v", uid, gid, pid, err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, _, err := linux.PeerCred(a); err == nil {
		t.Error("PeerCred of something that is no Unix socket")
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, _, err := linux.Lock(path, "the first")
	if err != nil {
		t.Fatal(err)
	}
	// A lock belongs to the open file, so that a second one in this process will do.
	if _, holder, err := linux.Lock(path, "the second"); !errors.Is(err, linux.ErrLocked) || holder != "the first" {
		t.Errorf("a second Lock: holder %q, %v", holder, err)
	}
	f.Close()
	g, _, err := linux.Lock(path, "the third")
	if err != nil {
		t.Fatal("after the release:", err)
	}
	g.Close()
}

func TestCopySparse(t *testing.T) {
	const size, at = 16 << 20, 5 << 20
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := bytes.Repeat([]byte("data"), 1<<18)
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := linux.CopySparse(dst, src); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(src)
	if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs: %v", err)
	}
	if n, err := linux.Allocated(dst); err != nil || n < int64(len(data)) || n > size/2 {
		t.Errorf("the copy takes %d bytes, %v", n, err)
	}
	if err := linux.CopySparse(dst, src); !errors.Is(err, os.ErrExist) {
		t.Errorf("a copy over a file: %v", err)
	}
}

func TestAwaitEnd(t *testing.T) {
	cmd := exec.Command("sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := linux.OpenPidfd(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := linux.AwaitEnd(ctx, pidfd); !errors.Is(err, context.Canceled) {
		t.Errorf("while it runs: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := linux.AwaitEnd(t.Context(), pidfd); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
	if _, err := linux.OpenPidfd(cmd.Process.Pid); err == nil {
		t.Error("opened a process that has ended")
	}
}

func TestLimitFileSize(t *testing.T) {
	t.Run("own", func(t *testing.T) { testLimitFileSize(t, uint32(os.Getuid()), 4096) })
	t.Run("of another user", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		testLimitFileSize(t, 0x7fff1234, 4096, 8192)
	})
}

// testLimitFileSize sets the limits one after the other, of which the last counts.
func testLimitFileSize(t *testing.T, uid uint32, limits ...uint64) {
	path := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("sh", "-c", `read go; exec head -c 100000 /dev/zero`)
	cmd.Stdout = file
	if uid != uint32(os.Getuid()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, limit := range limits {
		if err := linux.LimitFileSize(cmd.Process.Pid, uid, limit); err != nil {
			t.Error(err)
		}
	}
	in.Write([]byte("\n"))
	if err := cmd.Wait(); err == nil {
		t.Error("it wrote more than it may")
	}
	if info, err := os.Stat(path); err != nil || info.Size() != int64(limits[len(limits)-1]) {
		t.Errorf("the file: %v, %v", info, err)
	}
}

func TestLockSurvivesGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, []byte(strings.Repeat("9", 50)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, _, err := linux.Lock(path, "self")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := os.ReadFile(path); err != nil || string(text) != "self" {
		t.Errorf("the lock file says %q, %v", text, err)
	}
}

// The kernel's threads are told from processes.
func TestIsKernelThread(t *testing.T) {
	if linux.IsKernelThread(os.Getpid()) {
		t.Error("this process is one of the kernel's")
	}
	comm, err := os.ReadFile("/proc/2/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "kthreadd" {
		t.Skip("the kernel's processes are in another pid namespace")
	}
	if !linux.IsKernelThread(2) {
		t.Error("kthreadd is not one of the kernel's")
	}
}

// TestReadable reads past the page cache; that a disk fails, the host in a VM shows.
func TestReadable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	for _, content := range []string{"", "short", strings.Repeat("long", 5000)} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := linux.Readable(file); err != nil {
			t.Errorf("of %d bytes: %v", len(content), err)
		}
	}
	if err := linux.Readable(file + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of none: %v", err)
	}
}
