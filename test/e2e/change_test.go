package e2e

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
)

// TestChange makes one VM something else, again and again.
func TestChange(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--disk", "200M", "--root-size", "200M", "--", "sh", "-c", "echo work >/root/kept; echo root >/srv/gone")
	t.Run("grow while it runs", func(t *testing.T) {
		h.Must(t, "vm", "set", "m", "--disk", "600M", "--root-size", "500M")
		for dir, least := range map[string]int{"/root": 500, "/": 400} {
			if got := megabytes(t, h, dir); got < least {
				t.Errorf("%s has %d MB, want at least %d", dir, got, least)
			}
		}
	})
	t.Run("shrink", func(t *testing.T) {
		for _, flag := range []string{"--disk", "--root-size"} {
			refused{args: []string{"vm", "set", "m", flag, "100M"}, exit: exitInvalid, error: "cannot shrink", hint: "smaller"}.check(t, h)
		}
	})
	t.Run("rename while it runs", func(t *testing.T) {
		h.Must(t, "vm", "rename", "m", "n")
		if got := h.Must(t, "vm", "exec", "n", "--", "hostname"); got != "n" {
			t.Errorf("the guest is called %q", got)
		}
		h.Must(t, "vm", "create", "--name", "taken")
		refused{args: []string{"vm", "rename", "n", "taken"}, exit: exitExists, error: `"taken"`, hint: "vm list"}.check(t, h)
		h.Must(t, "vm", "delete", "taken")
		h.Must(t, "vm", "rename", "n", "m")
	})
	t.Run("memory and CPUs", func(t *testing.T) {
		if r := h.Banger(t, "vm", "set", "m", "--memory", "320M", "--cpus", "2"); r.Exit != 0 || !strings.Contains(r.Stderr, "next start") {
			t.Errorf("exit status %d, %q", r.Exit, r.Stderr)
		}
		h.KillDaemon(t) // what the machine was started with outlives the daemon
		if show := h.Must(t, "vm", "show", "m", "--json"); !strings.Contains(show, `"pending"`) {
			t.Errorf("show does not say that the change is to come:\n%s", show)
		}
		h.Must(t, "vm", "restart", "m")
		if got := h.Must(t, "vm", "exec", "m", "--", "nproc"); got != "2" {
			t.Errorf("%s CPUs after the restart", got)
		}
		if show := h.Must(t, "vm", "show", "m", "--json"); strings.Contains(show, `"pending"`) {
			t.Errorf("show says after the restart that a change is to come:\n%s", show)
		}
	})
	t.Run("reset", func(t *testing.T) {
		h.Must(t, "vm", "reset", "m")
		if got := h.Must(t, "vm", "exec", "m", "--", "sh", "-c", "cat /root/kept; ls /srv"); got != "work" {
			t.Errorf("after the reset: %q", got)
		}
		if got := megabytes(t, h, "/"); got < 400 {
			t.Errorf("the fresh root has %d MB", got)
		}
	})
	t.Run("grow while it is stopped", func(t *testing.T) {
		h.Must(t, "vm", "stop", "m")
		h.Must(t, "vm", "set", "m", "--disk", "900M")
		h.Must(t, "vm", "start", "m")
		if got := megabytes(t, h, "/root"); got < 800 {
			t.Errorf("/root has %d MB", got)
		}
	})
	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}

// megabytes is how large the guest finds a file system.
func megabytes(t *testing.T, h *hosttest.Host, dir string) int {
	t.Helper()
	text := h.Must(t, "vm", "exec", "m", "--", "df", "--output=size", "-BMB", dir)
	n, err := strconv.Atoi(strings.TrimSuffix(strings.Fields(text)[1], "MB"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWorkDisk looks at a work disk's first content, and at a VM without one.
func TestWorkDisk(t *testing.T) {
	h := hosttest.NewSeeded(t)
	image := h.Must(t, "vm", "run", "--rm", "--disk", "0", "--", "sh", "-c", "ls -lAn /root | grep -v ^total; findmnt -n -o TARGET /root; true")
	disk := h.Must(t, "vm", "run", "--rm", "--", "sh", "-c", "ls -lAn /root | grep -v ^total; findmnt -n -o TARGET /root; true")
	if disk != image+"\n/root" {
		t.Errorf("/root of the image:\n%s\nof the work disk:\n%s", image, disk)
	}
	nothingLeft(t, h)
}

// TestCrashDuringChange kills the daemon at some instant of each change. The next
// daemon finds a VM that can be used, and deleting it leaves nothing.
func TestCrashDuringChange(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--disk", "100M", "--", "sh", "-c", "echo work >/root/kept")
	size := 100
	for _, change := range []struct {
		args   []string
		within time.Duration
	}{
		{[]string{"vm", "set", "m", "--disk"}, 300 * time.Millisecond},
		{[]string{"vm", "restart", "m"}, 3 * time.Second},
		{[]string{"vm", "reset", "m"}, 3 * time.Second},
		{[]string{"vm", "promote", "m", "promoted"}, 4 * time.Second},
	} {
		args := change.args
		switch args[1] {
		case "set":
			size += 50
			args = append(args, strconv.Itoa(size)+"M")
		case "promote":
			if r := h.Banger(t, "vm", "stop", "m"); r.Exit != 0 && r.Exit != exitConflict {
				t.Errorf("stop: %s", r.Stderr)
			}
		}
		after := rand.N(change.within)
		cmd := h.Command(t.Context(), args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		h.KillDaemon(t)
		_ = cmd.Wait() // it may have come through, or not
		if r := h.Banger(t, "vm", "start", "m"); r.Exit != 0 && r.Exit != exitConflict {
			t.Errorf("%v, the daemon killed after %v: start: %s", args, after, r.Stderr)
		}
		if got := h.Must(t, "vm", "exec", "m", "--", "cat", "/root/kept"); got != "work" {
			t.Errorf("%v, the daemon killed after %v: the work disk has %q", args, after, got)
		}
	}
	h.Must(t, "vm", "delete", "--force", "m")
	nothingLeft(t, h)
}
