package agent

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"banger/api"
)

// TestListening reads what proc_pid_net(5) and proc_pid_fd(5) look like.
func TestListening(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"net/tcp": "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
			"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0\n" +
			"   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0\n" +
			"   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 103 1 0 100 0 0 10 0\n" +
			"   3: nonsense:0016 00000000:0000 0A 0 0 0 0 0 104\n   4: short\n",
		"net/udp6": "heading\n 9: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 105 2 0 0\n",
		"12/comm":  "sshd\n",
		"7/comm":   "sshd-listener\n",
	} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range []string{"7", "12"} {
		fd := filepath.Join(proc, pid, "fd")
		if err := os.MkdirAll(fd, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:[102]", filepath.Join(fd, "3")); err != nil {
			t.Fatal(err)
		}
	}
	want := []api.Port{
		{Protocol: "tcp", Address: "0.0.0.0", Port: 22, PID: 7, Process: "sshd-listener"},
		{Protocol: "udp", Address: "::1", Port: 53},
		{Protocol: "tcp", Address: "127.0.0.1", Port: 8080},
	}
	if got := listening(proc); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestListeningHere finds sockets of this very process.
func TestListeningHere(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	all := listening("/proc")
	for protocol, addr := range map[string]net.Addr{"tcp": tcp.Addr(), "udp": udp.LocalAddr()} {
		_, port, err := net.SplitHostPort(addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(p api.Port) bool {
			return p.Protocol == protocol && strconv.Itoa(int(p.Port)) == port && p.PID == os.Getpid() && p.Process != ""
		}) {
			t.Errorf("%s %s is not in %+v", protocol, addr, all)
		}
	}
}

// TestStats looks at this host as though it were a guest.
func TestStats(t *testing.T) {
	s, err := guestStats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Uptime <= 0 || s.CPUs < 1 || s.CPU < 0 || s.CPU > 1 || s.Memory.Total <= s.Memory.Used || s.Memory.Used <= 0 || s.Root.Total <= 0 || s.Processes < 1 {
		t.Errorf("%+v", s)
	}
}
