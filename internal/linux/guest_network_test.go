package linux_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/linux"
)

// TestLinkWith looks among this host's links, of which each namespace has lo, and among
// links that have gone while they were listed.
func TestLinkWith(t *testing.T) {
	zero := make(net.HardwareAddr, 6)
	if link, err := linux.LinkWith("/sys/class/net", zero); err != nil || link.Name != "lo" || link.Index != 1 {
		t.Errorf("lo: %+v, %v", link, err)
	}
	other := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if link, err := linux.LinkWith("/sys/class/net", other); !errors.Is(err, unix.ENODEV) {
		t.Errorf("an address that nobody has: %+v, %v", link, err)
	}
	dir := t.TempDir()
	add := func(name string, files map[string]string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	add("gone", nil)
	add("going", map[string]string{"address": other.String()})
	if link, err := linux.LinkWith(dir, other); !errors.Is(err, unix.ENODEV) {
		t.Errorf("links of which something is missing: %+v, %v", link, err)
	}
	add("br0", map[string]string{"address": other.String(), "ifindex": "12"})
	add("eth0", map[string]string{"address": other.String(), "ifindex": "2"})
	if link, err := linux.LinkWith(dir, other); err != nil || link.Name != "eth0" || link.Index != 2 {
		t.Errorf("a bridge and its port: %+v, %v", link, err)
	}
}

func TestListenTCP(t *testing.T) {
	l, err := linux.ListenTCP(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for _, host := range []string{"127.0.0.1", "::1"} {
		if _, err := os.Stat("/proc/net/if_inet6"); err != nil && host == "::1" {
			continue // no IPv6 here
		}
		conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			t.Error(err)
			continue
		}
		conn.Close()
		if got, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			got.Close()
		}
	}
	if _, err := linux.ListenTCP(port); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
}
