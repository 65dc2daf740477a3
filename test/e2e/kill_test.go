package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// How often TestKilledAtRandom kills the daemon, for how many minutes at most (0 for as
// long as it takes), and what its random numbers begin with.
const (
	envKills   = "BANGER_CHAOS_KILLS"
	envMinutes = "BANGER_CHAOS_MINUTES"
	envSeed    = "BANGER_CHAOS_SEED"
)

// TestKilledAtRandom kills the daemon at random instants, while people do things with
// VMs, whose VMMs are killed or stand still now and then. A VM that nobody touches
// runs on in the same process, and so does a command in it. In the end what the
// daemon says is so, and everything can be deleted with nothing left.
func TestKilledAtRandom(t *testing.T) {
	kills, seed := numberFrom(t, envKills, 30), numberFrom(t, envSeed, uint64(time.Now().UnixNano()))
	t.Logf("%s=%d %s=%d has the same people do the same things", envKills, kills, envSeed, seed)
	h := hosttest.NewSeeded(t)
	start := time.Now()
	h.Must(t, "vm", "run", "--name", "still", "--memory", "192M", "--", "true")
	boot := time.Since(start) // as long as one takes here
	pid := vmOf(t, h, "still").PID
	count := beginFor(t, h, 30*time.Minute+time.Duration(kills)*10*time.Second, "vm", "exec", "still", "--", "sh", "-c", "i=0; while ! test -e /tmp/stop; do i=$((i+1)); echo $i; sleep 0.2; done; echo end")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := &tally{count: map[string]int{}}
	var people sync.WaitGroup
	for i := range uint64(3) {
		p := person{t, h, done, rand.New(rand.NewPCG(seed, i)), "v" + strconv.FormatUint(i, 10)}
		people.Go(func() {
			for ctx.Err() == nil {
				p.act()
			}
		})
	}
	when := rand.New(rand.NewPCG(seed, 1000))
	minutes, killed := numberFrom(t, envMinutes, 0), uint64(0)
	for ; killed < kills && (minutes == 0 || time.Since(start) < time.Duration(minutes)*time.Minute); killed++ {
		within := boot / 4 // so soon that it has hardly begun, or late enough for VMs to boot
		if when.IntN(2) == 0 {
			within = 3 * boot
		}
		time.Sleep(time.Duration(when.Float64() * float64(within)))
		killDaemon(t, h)
		if got := vmOf(t, h, "still"); got.State != api.VMRunning || got.PID != pid {
			t.Errorf("a VM that nobody touches: %+v, want process %d", got, pid)
		}
	}
	cancel()
	people.Wait()
	t.Logf("killed %d times in %.0f s, a boot takes %.1f s; done: %v", killed, time.Since(start).Seconds(), boot.Seconds(), done.count)
	if done.count["start"]+done.count["run"]+done.count["restart"]+done.count["stop"]+done.count["exec"] == 0 {
		t.Error("nobody ever got a VM to run")
	}

	answers(t, h, "still", "touch", "/tmp/stop")
	count.ends(t, 0, "\nend\n")
	for i, line := range strings.Split(strings.TrimSuffix(count.out.String(), "\nend\n"), "\n") {
		if line != strconv.Itoa(i+1) {
			t.Errorf("line %d of a command that outlived the daemons is %q", i+1, line)
			break
		}
	}
	for _, v := range listed(t, h) {
		switch v.State {
		case api.VMStopped:
		case api.VMPaused:
			h.Must(t, "vm", "resume", v.Name)
			answers(t, h, v.Name, "true")
		case api.VMSuspended:
			h.Must(t, "vm", "start", v.Name)
			answers(t, h, v.Name, "true")
		case api.VMRunning:
			answers(t, h, v.Name, "true")
		default:
			t.Errorf("VM %s is %s, and nobody does anything", v.Name, v.State)
		}
		h.Must(t, "vm", "delete", "--force", v.Name)
	}
	for image := range strings.FieldsSeq(h.Must(t, "image", "list", "--quiet")) {
		if image != "debian" {
			h.Must(t, "image", "rm", image)
		}
	}
	nothingLeft(t, h)
}

// numberFrom reads a variable of the environment.
func numberFrom(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// killDaemon kills the daemon, which somebody may be starting, and waits for its end: a
// thread of it that waits for the disk ends with that only.
func killDaemon(t *testing.T, h *hosttest.Host) {
	t.Helper()
	pid := 0
	hosttest.Eventually(t, time.Minute, "a daemon answers", func() bool { pid = h.DaemonPID(); return pid != 0 })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill the daemon: %v", err)
	}
	hosttest.Eventually(t, 3*time.Minute, "a daemon that was killed ends", func() bool { return syscall.Kill(pid, 0) != nil })
}

// answers runs a command in a VM, which may be booting.
func answers(t *testing.T, h *hosttest.Host, vm string, command ...string) {
	t.Helper()
	hosttest.Eventually(t, 3*time.Minute, "VM "+vm+" answers", func() bool {
		return h.Banger(t, append([]string{"vm", "exec", vm, "--"}, command...)...).Exit == 0
	})
}

func listed(t *testing.T, h *hosttest.Host) (vms []api.VM) {
	t.Helper()
	if err := json.Unmarshal([]byte(h.Must(t, "vm", "list", "--json")), &vms); err != nil {
		t.Fatal(err)
	}
	return vms
}

// vmOf returns a VM that there is.
func vmOf(t *testing.T, h *hosttest.Host, name string) api.VM {
	t.Helper()
	for _, v := range listed(t, h) {
		if v.Name == name {
			return v
		}
	}
	t.Errorf("VM %s is lost", name)
	return api.VM{}
}

// tally counts what has succeeded.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *tally) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[what]++
}

// person does things with a VM.
type person struct {
	t    *testing.T
	h    *hosttest.Host
	done *tally
	rand *rand.Rand
	vm   string
}

// act does one of them. It may be refused, or meet the end of the daemon: that it says so
// is all that is asked.
func (p person) act() {
	things := [][]string{
		{"vm", "run", "--name", p.vm, "--memory", "192M", "--", "true"},
		{"vm", "start", p.vm}, {"vm", "start", p.vm},
		{"vm", "stop", "--timeout", "5s", p.vm}, {"vm", "kill", p.vm}, {"vm", "restart", "--timeout", "5s", p.vm},
		{"vm", "suspend", p.vm}, {"vm", "pause", p.vm}, {"vm", "resume", p.vm},
		{"vm", "reset", p.vm}, {"vm", "delete", "--force", p.vm},
		{"vm", "run", "--rm", "--memory", "192M", "--", "true"},
		{"vm", "exec", p.vm, "--", "sh", "-c", "date >>/root/dates; sync"},
		{"vm", "set", p.vm, "--root-size", strconv.Itoa(11+p.rand.IntN(20)) + "G"},
		{"image", "import", p.vm, "-"}, {"image", "rm", p.vm},
		{"SIGKILL"}, {"SIGSTOP"},
	}
	args := things[p.rand.IntN(len(things))]
	pause := time.Duration(p.rand.IntN(500)) * time.Millisecond // drawn in any case, so that the numbers stay the same
	if strings.HasPrefix(args[0], "SIG") {
		p.disturb(args[0], pause)
		return
	}
	input := ""
	if args[1] == "import" {
		input = tarOf(p.t, p.vm)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	start := time.Now()
	r := hosttest.Run(p.t, p.h.Command(ctx, args...), input)
	if r.Exit == 0 {
		p.done.add(args[1])
	}
	if r.Exit < 0 || strings.Contains(r.Stderr, "panic") || r.Exit != 0 && !strings.Contains(r.Stderr, "banger: ") {
		p.t.Errorf("banger %s: exit status %d after %v\n%s", strings.Join(args, " "), r.Exit, time.Since(start), r.Stderr)
	}
}

// disturb kills the VMM, or has it stand still for a while.
func (p person) disturb(signal string, pause time.Duration) {
	var vms []api.VM
	if r := p.h.Banger(p.t, "vm", "list", "--json"); r.Exit != 0 || json.Unmarshal([]byte(r.Stdout), &vms) != nil {
		return
	}
	for _, v := range vms {
		if v.Name != p.vm || v.PID == 0 {
			continue
		}
		pidfd, err := os.FindProcess(v.PID) // no later process of that number
		if err != nil {
			return
		}
		defer func() { _ = pidfd.Release() }()
		p.done.add(signal)
		if signal == "SIGKILL" {
			_ = pidfd.Kill() // it may have ended
			return
		}
		_ = pidfd.Signal(syscall.SIGSTOP)
		time.Sleep(pause)
		_ = pidfd.Signal(syscall.SIGCONT)
	}
}

// tarOf is an archive with a file of its own.
func tarOf(t *testing.T, content string) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("tar", "-C", dir, "-c", ".")
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	return out.String()
}
