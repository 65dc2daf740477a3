package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// child is set for a process that says what Listener gives it.
const child = "BANGER_TEST_LISTENER"

func TestMain(m *testing.M) {
	if os.Getenv(child) == "" {
		os.Exit(m.Run())
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // as systemd does after its fork
	listener, err := Listener()
	switch {
	case err != nil:
		fmt.Print("error: ", err)
	case listener == nil:
		fmt.Print("none")
	default:
		fmt.Print(listener.Addr())
	}
	if again, err := Listener(); again != nil || err != nil {
		fmt.Print(", and once more ", again, err)
	}
}

func file(t *testing.T, l interface{ File() (*os.File, error) }, err error) *os.File {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	unix, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	ours := file(t, unix, err)
	defer unix.Close()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	theirs := file(t, tcp, err)
	defer tcp.Close()
	for want, passed := range map[string][]*os.File{
		"none": nil,
		path:   {ours},
		"error: take the socket that systemd passed: it is of tcp": {theirs},
		"error: take the socket that systemd passed: it passed 2":  {ours, theirs},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.ExtraFiles = passed
		cmd.Env = append(os.Environ(), child+"=1", fmt.Sprint("LISTEN_FDS=", len(passed)))
		if got, err := cmd.Output(); err != nil || string(got) != want {
			t.Errorf("of %d files: %q, %v; want %q", len(passed), got, err, want)
		}
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify(Ready); err != nil {
		t.Errorf("to nobody: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for _, state := range []string{Ready, Alive, Stopping} {
		if err := Notify(state); err != nil {
			t.Error(err)
		}
		heard := make([]byte, 100)
		n, err := manager.Read(heard)
		if err != nil || string(heard[:n]) != state {
			t.Errorf("said %q, heard %q, %v", state, heard[:n], err)
		}
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
		bad       bool
	}{
		{"", "", 0, false},
		{"20000000", strconv.Itoa(os.Getpid()), 20 * time.Second, false},
		{"20000000", "1", 0, false}, // of another process
		{"soon", strconv.Itoa(os.Getpid()), 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got, err := Watchdog(); got != c.want || (err != nil) != c.bad {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}

// TestWithoutSystemd asks for what a host without it does not have. With it, the tests
// of a host in a VM ask.
func TestWithoutSystemd(t *testing.T) {
	if Booted() {
		t.Skip("systemd is the service manager here")
	}
	if Serves(t.Context(), "/run/banger/bangerd.sock") {
		t.Error("it serves a socket")
	}
	for what, err := range map[string]error{
		"start": Start(t.Context(), Service), "stop": Stop(t.Context(), "banger-x.scope"),
		"scope": StartScope(t.Context(), "banger-x.scope", "a test", os.Getpid()),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "connect to systemd: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestErrorNames(t *testing.T) {
	exists := fmt.Errorf("start x: %w", godbus.Error{Name: "org.freedesktop.systemd1.UnitExists"})
	for _, c := range []struct {
		err  error
		name string
		want bool
	}{
		{exists, "UnitExists", true}, {exists, "NoSuchUnit", false}, {errors.New("UnitExists"), "UnitExists", false}, {nil, "UnitExists", false},
	} {
		if got := is(c.err, c.name); got != c.want {
			t.Errorf("is(%v, %q) = %v", c.err, c.name, got)
		}
	}
}
