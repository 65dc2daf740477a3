package firecracker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// A guest that does not do what an agent does holds up nobody longer than they wait.
func TestHostileGuests(t *testing.T) {
	for _, behaviour := range []string{"refuses", "says nothing", "garbage", "endless", "large headers", "flood", "never ready", "eager"} {
		t.Run(behaviour, func(t *testing.T) {
			inst := start(t, newDriver(t, fakeSetup{Guest: behaviour, Unchecked: true}, Options{NoJail: true}), newMachine(t))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			began := time.Now()
			conn, err := guest.Connect(ctx, guest.Stream, inst.Dial, "")
			if err == nil {
				defer conn.Close()
				_, err = conn.Configure(ctx, wire.Configure{})
			}
			if behaviour == "eager" { // its agent answers; that it says so again and again is no matter
				must(t, err)
				if _, err := os.Lstat(filepath.Join(inst.(*instance).sockets(), readySocket)); !os.IsNotExist(err) {
					t.Error("the guest still has somebody to talk to: ", err)
				}
				return
			}
			if err == nil {
				t.Fatal("it was taken for an agent")
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %v: %v", took, err)
			}
			if text := err.Error(); len(text) > 1000 {
				t.Errorf("%d bytes of an error", len(text))
			}
		})
	}
}

// A thousand connections at the same time all get what is theirs.
func TestStreams(t *testing.T) {
	inst := start(t, newDriver(t, fakeSetup{Unchecked: true}, Options{}), newMachine(t))
	connect(t, inst)
	var all sync.WaitGroup
	for n := range 1000 {
		all.Go(func() {
			conn, err := inst.Dial(ctxOf(t))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			body := bytes.Repeat(fmt.Appendf(nil, "%d ", n), 2000)
			client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
			resp, err := client.Post("http://agent/echo", "", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
				t.Errorf("connection %d got %d bytes of %d, %v", n, len(got), len(body), err)
			}
		})
	}
	all.Wait()
}

// What nobody reads does not pile up: the writer waits.
func TestBackpressure(t *testing.T) {
	inst := start(t, newDriver(t, fakeSetup{Guest: "slow", Unchecked: true}, Options{NoJail: true}), newMachine(t))
	conn, err := inst.Dial(ctxOf(t))
	must(t, err)
	defer conn.Close()
	must(t, conn.SetWriteDeadline(time.Now().Add(time.Second)))
	if n, err := io.Copy(conn, zeros{}); err == nil || n > 64<<20 {
		t.Errorf("%d bytes were taken by a guest that reads none, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A later daemon finds an agent that answers, one that boots still, and one that lets
// them wait.
func TestAttachWhileBooting(t *testing.T) {
	for behaviour, ready := range map[string]bool{"": true, "late": true, "never ready, refuses": false} {
		t.Run(behaviour, func(t *testing.T) {
			d := newDriver(t, fakeSetup{Guest: behaviour, Unchecked: true}, Options{})
			m := newMachine(t)
			inst := start(t, d, m)
			must(t, inst.Close()) // the daemon ends
			later, err := driverOf(d.options).Attach(t.Context(), m)
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: time.Minute, false: time.Second}[ready])
			defer cancel()
			conn, err := guest.Connect(ctx, guest.Stream, later.Dial, "")
			if (err == nil) != ready {
				t.Error(err)
			}
			if conn != nil {
				conn.Close()
			}
			must(t, later.Close())
		})
	}
}

// A Firecracker that nobody has described a machine to is not one to take up.
func TestAttachToHalfStarted(t *testing.T) {
	d := newDriver(t, fakeSetup{Unchecked: true}, Options{})
	m := newMachine(t)
	_, err := d.Check(t.Context())
	must(t, err)
	i, err := d.begin(m, "")
	must(t, err)
	defer i.Close()
	defer i.Kill()
	must(t, i.awaitAPI(ctxOf(t)))
	if _, err := driverOf(d.options).Attach(t.Context(), m); err == nil || !strings.Contains(err.Error(), "not started") {
		t.Errorf("got %v", err)
	}
}

// What lies in place of a socket is not followed.
func TestSocketsAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	l, err := linux.ListenUnix(filepath.Join(dir, "host.sock"))
	must(t, err)
	defer l.Close()
	must(t, os.Symlink("host.sock", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for name, ok := range map[string]bool{"host.sock": true, "link": false, "file": false, "none": false} {
		c, err := linux.DialUnixIn(t.Context(), dir, name)
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
		if c != nil {
			c.Close()
		}
	}
}

// A guest that only says that it is off is not.
func TestSaysOff(t *testing.T) {
	for text, want := range map[string]bool{
		"[    3.1] reboot: Power down\n": true, "[    3.1] reboot: Power down\r\n": true, "reboot: Power down": true,
		"reboot: Power down\nand on\n": false, "reboot: Restarting system\n": false, "": false, "Power down": false,
	} {
		path := filepath.Join(t.TempDir(), "console")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if got := saysOff(path); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// A kernel that has switched its machine off has its VMM end.
func TestOff(t *testing.T) {
	inst := start(t, newDriver(t, fakeSetup{Unchecked: true}, Options{}), newMachine(t))
	connect(t, inst)
	must(t, inst.PowerButton(t.Context()))
	if exit := awaitExit(t, inst); exit != (vmm.Exit{Known: true, At: exit.At}) {
		t.Errorf("exited as %+v", exit)
	}
}
