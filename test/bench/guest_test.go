package bench

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
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
// ones, and tar does the same through an exec.
func BenchmarkCp1G(b *testing.B) {
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
	compareCopies(b, "cp-1g", dir)
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
	compareCopies(b, "cp-10k", dir)
}

// compareCopies copies a directory into a VM and out of it again.
func compareCopies(b *testing.B, name, dir string) {
	b.Helper()
	const few = 5 // they take long
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "m", "--memory", "1G", "--", "mkdir", "/root/there")
	out := b.TempDir()
	clean := func() {
		h.Must(b, "vm", "exec", "m", "--", "sh", "-c", "rm -rf /root/in; mkdir /root/in; sync")
		if err := os.RemoveAll(filepath.Join(out, "x")); err != nil {
			b.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(out, "x"), 0o755); err != nil {
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
			return piped(b, exec.Command("tar", "-c", "-C", dir, "."), h.Command(b.Context(), "vm", "exec", "m", "--", "tar", "-x", "-C", "/root/in"))
		})
	h.Must(b, "vm", "cp", "--quiet", dir+"/.", "m:/root/there")
	compare(b, name+"-out", few, 1.20,
		func() time.Duration {
			clean()
			return timed(b, h.Command(b.Context(), "vm", "cp", "--quiet", "m:/root/there/.", filepath.Join(out, "x")))
		},
		func() time.Duration {
			clean()
			return piped(b, h.Command(b.Context(), "vm", "exec", "m", "--", "tar", "-c", "-C", "/root/there", "."), exec.Command("tar", "-x", "-C", filepath.Join(out, "x")))
		})
}

// piped runs two commands, the output of one being the input of the other.
func piped(b *testing.B, from, to *exec.Cmd) time.Duration {
	b.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	from.Stdout, to.Stdin = w, r
	began := time.Now()
	if err := from.Start(); err != nil {
		b.Fatal(err)
	}
	w.Close()
	out, err := to.CombinedOutput()
	r.Close()
	if ferr := from.Wait(); err != nil || ferr != nil {
		b.Errorf("%v: %v; %v: %v\n%s", from.Args, ferr, to.Args, err, out)
	}
	return time.Since(began)
}
