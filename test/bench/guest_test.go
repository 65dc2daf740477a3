package bench

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// BenchmarkExecTrue compares an exec of true with what ssh needs for the same, on a
// fresh connection to OpenSSH's own server in the same VM; exec-true-ours is the
// same against the agent's own server.
func BenchmarkExecTrue(b *testing.B) {
	h := hosttest.NewSystemd(b)
	dir := b.TempDir()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "key")).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	key, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		b.Fatal(err)
	}
	h.Must(b, "vm", "run", "--name", "m", "--image", "debian-systemd", "--", "sh", "-c",
		"mkdir -p -m 700 /root/.ssh /run/sshd; echo '"+string(key)+"' >/root/.ssh/authorized_keys; /usr/sbin/sshd")
	var m api.VM
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "m", "--json")), &m); err != nil {
		b.Fatal(err)
	}
	ours := func() time.Duration { return timed(b, h.Command(b.Context(), "vm", "exec", "m", "--", "true")) }
	compare(b, "exec-true", rounds, 0.10, ours, func() time.Duration {
		return timed(b, exec.Command("ssh", "-i", filepath.Join(dir, "key"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "root@"+m.IP, "true"))
	})
	compare(b, "exec-true-ours", rounds, 1, ours, func() time.Duration {
		return timed(b, h.Command(b.Context(), "vm", "ssh", "m", "--", "true"))
	})
}

// BenchmarkCp1G copies one file of 1 GiB, BenchmarkCp10k a tree of 10,000 small
// ones, into a VM and out of one; tar does the same over a channel of its own.
func BenchmarkCp1G(b *testing.B) {
	p := newPair(b)
	dir := b.TempDir()
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, 1<<30); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	p.compareCopies(b, "cp-1g", dir)
}

func BenchmarkCp10k(b *testing.B) {
	dir := b.TempDir()
	for i := range 10_000 {
		sub := filepath.Join(dir, fmt.Sprint(i/100))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(fmt.Sprintf("%01000d", i)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	newPair(b).compareCopies(b, "cp-10k", dir)
}

// pair is a VM and, as the floor, a machine of the same kind that was started by hand
// with one more port, over which tar here and tar there speak with nothing in between.
type pair struct {
	h    *hosttest.Host
	vm   api.VM
	hand *handMachine
}

func newPair(b *testing.B) pair {
	b.Helper()
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "m", "--memory", "1G", "--", "mkdir", "/root/there")
	var vm api.VM
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "m", "--json")), &vm); err != nil {
		b.Fatal(err)
	}
	hand := newByHand(b, vm.PID, filepath.Join(h.Paths.State, "cache")).boot(b,
		"-chardev", "socket,id=raw,server=on,wait=off,path=raw.sock", "-device", "virtserialport,chardev=raw,name=raw")
	hand.exec(b, "mkdir", "/root/there")
	return pair{h, vm, hand}
}

// compareCopies copies a directory into a VM and out of it again.
func (p pair) compareCopies(b *testing.B, name, dir string) {
	b.Helper()
	const few = 5 // they take long
	h, hand := p.h, p.hand
	out := filepath.Join(b.TempDir(), "out")
	const clear = "rm -rf /root/in && mkdir /root/in && sync"
	clean := func() {
		h.Must(b, "vm", "exec", "m", "--", "sh", "-c", clear)
		hand.exec(b, "sh", "-c", clear)
		if err := errors.Join(os.RemoveAll(out), os.Mkdir(out, 0o755)); err != nil {
			b.Fatal(err)
		}
	}
	compare(b, name+"-in", few, 1.20,
		func() time.Duration {
			clean()
			return timed(b, h.Command(b.Context(), "vm", "cp", "--quiet", dir+"/.", "m:/root/in"))
		},
		func() time.Duration {
			clean()
			return hand.tarIn(b, dir, "/root/in")
		})
	h.Must(b, "vm", "cp", "--quiet", dir+"/.", "m:/root/there")
	hand.tarIn(b, dir, "/root/there")
	compare(b, name+"-out", few, 1.20,
		func() time.Duration {
			clean()
			return timed(b, h.Command(b.Context(), "vm", "cp", "--quiet", "m:/root/there/.", out))
		},
		func() time.Duration {
			clean()
			return hand.tarOut(b, "/root/there", out)
		})
}

// port is the device of the raw port in a machine, for a shell.
const port = `/dev/$(basename $(dirname $(grep -lx raw /sys/class/virtio-ports/*/name)))`

// tarIn copies what is in a directory here into one in the machine.
func (m *handMachine) tarIn(b *testing.B, from, to string) time.Duration {
	b.Helper()
	return m.tar(b, exec.Command("tar", "-c", "-C", from, "."), "exec tar -x -C "+to+" <"+port)
}

// tarOut copies what is in a directory of the machine into one here.
func (m *handMachine) tarOut(b *testing.B, from, to string) time.Duration {
	b.Helper()
	return m.tar(b, exec.Command("tar", "-x", "-C", to), "exec tar -c -C "+from+" . >"+port)
}

// tar runs one tar here, whose standard input and output are the raw port, and one
// in the machine.
func (m *handMachine) tar(b *testing.B, here *exec.Cmd, there string) time.Duration {
	b.Helper()
	began := time.Now()
	conn, err := m.dial(b.Context(), "raw.sock")
	if err != nil {
		b.Fatal(err)
	}
	raw, err := conn.(*net.UnixConn).File()
	if err != nil {
		b.Fatal(err)
	}
	here.Stdin, here.Stdout, here.Stderr = raw, raw, os.Stderr
	if err := errors.Join(here.Start(), raw.Close()); err != nil {
		b.Fatal(err)
	}
	m.exec(b, "sh", "-c", there)
	if err := here.Wait(); err != nil {
		b.Errorf("%v: %v", here.Args, err)
	}
	took := time.Since(began)
	if err := conn.Close(); err != nil { // now: QEMU drops what has not been read
		b.Fatal(err)
	}
	return took
}
