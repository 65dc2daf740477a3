package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

// BenchmarkWake compares `vm start` of a suspended VM, from the start of the command line
// to its end, with the same VMM, started by hand with the same options, that reads the
// same memory, is told to go on, and whose agent answers.
func BenchmarkWake(b *testing.B) {
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "model", "--", "true")
	model := shown(b, h, "model")
	hand := newByHand(b, model.PID, filepath.Join(h.Paths.State, "cache"))
	for i, d := range hand.disks {
		if d.fresh != "" { // which the memory would not know
			hand.disks[i].fresh = d.path
		}
	}
	h.Must(b, "vm", "suspend", "model")
	compare(b, "wake", rounds, 1.50,
		func() time.Duration {
			took := timed(b, h.Command(b.Context(), "vm", "start", "model"))
			h.Must(b, "vm", "suspend", "model")
			return took
		},
		func() time.Duration {
			states, err := filepath.Glob(filepath.Join(h.Paths.State, "suspended", model.ID+"-*", "state"))
			if err != nil || len(states) != 1 {
				b.Fatal(states, err)
			}
			return hand.wake(b, states[0])
		})
	compareOnce(b, h, "suspend", "vm", "suspend", "model")
}

// compareOnce prints how long a command takes about a VM that runs, and how large what it
// leaves is.
func compareOnce(b *testing.B, h *hosttest.Host, name string, args ...string) {
	b.Helper()
	var all []time.Duration
	for range rounds {
		h.Must(b, "vm", "start", "model")
		all = append(all, timed(b, h.Command(b.Context(), args...)))
	}
	slices.Sort(all)
	var usage api.DiskUsage
	if err := json.Unmarshal([]byte(h.Must(b, "system", "df", "--json")), &usage); err != nil || len(usage.VMs) != 1 {
		b.Fatal(usage, err)
	}
	fmt.Printf("%s ours=%v saved=%dMiB\n", name, all[rounds/2].Round(10*time.Microsecond), usage.VMs[0].Saved>>20)
}

func shown(b *testing.B, h *hosttest.Host, name string) (v api.VM) {
	b.Helper()
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", name, "--json")), &v); err != nil {
		b.Fatal(err)
	}
	return v
}

// wake returns how long it takes until a machine with the memory in a file answers.
func (h *byHand) wake(b *testing.B, state string) time.Duration {
	b.Helper()
	m := &handMachine{dir: b.TempDir()}
	files := h.files(b, m.dir)
	memory, err := os.Open(state)
	if err != nil {
		b.Fatal(err)
	}
	files = append(files, memory)
	began := time.Now()
	m.cmd = exec.Command(h.args[0], append(slices.Clone(h.args[1:]), "-S", "-incoming", fmt.Sprintf("fd:%d", 2+len(files)))...)
	m.cmd.Dir, m.cmd.Stderr, m.cmd.ExtraFiles = m.dir, os.Stderr, files
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = m.cmd.Start()
	for _, f := range files {
		_ = f.Close() // nothing was written to it here
	}
	if err != nil {
		b.Fatal(err)
	}
	defer m.kill()
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	if err := m.goOn(ctx); err != nil {
		b.Fatal(err)
	}
	if m.conn, err = guest.Connect(ctx, guest.Serial, func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, "agent.sock") }, h.secret); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// goOn has the machine go on once it has read its memory.
func (m *handMachine) goOn(ctx context.Context) error {
	conn, err := m.dial(ctx, "qmp.sock")
	if err != nil {
		return err
	}
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	ask := func(command string) (string, error) {
		if _, err := fmt.Fprintf(conn, "{\"execute\":%q}\n", command); err != nil {
			return "", err
		}
		for lines.Scan() {
			if text := lines.Text(); strings.Contains(text, `"return"`) || strings.Contains(text, `"error"`) {
				return text, nil
			}
		}
		return "", errors.Join(errors.New("the monitor has ended"), lines.Err())
	}
	if _, err := ask("qmp_capabilities"); err != nil {
		return err
	}
	for {
		text, err := ask("query-status")
		if err != nil {
			return err
		}
		if strings.Contains(text, `"paused"`) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_, err = ask("cont")
	return err
}

// BenchmarkOverhead compares what a VMM of banger's takes beside its guest's memory with
// what one takes that was started by hand: the proportional set size (PSS) of all that
// is not the guest's.
func BenchmarkOverhead(b *testing.B) {
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "model", "--", "true")
	model := shown(b, h, "model")
	hand := newByHand(b, model.PID, filepath.Join(h.Paths.State, "cache"))
	m := hand.boot(b)
	m.exec(b, "true")
	ours, its := overhead(b, model.PID, model.Memory), overhead(b, m.cmd.Process.Pid, model.Memory)
	_, resident, err := linux.ProcessUsage(model.PID)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("overhead ratio=%.2f goal<=1.10 ours=%.1fMiB floor=%.1fMiB resident=%.1fMiB\n",
		float64(ours)/float64(its), mib(ours), mib(its), mib(resident))
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// overhead sums the PSS of a process's mappings but that of its guest's memory, which is
// the one that is as large, or somewhat larger: the kernel makes one of it and of a heap that
// happens to be beside it. proc_pid_smaps(5).
func overhead(b *testing.B, pid int, memory int64) (sum int64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		b.Fatal(err)
	}
	guests, found := false, false
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		switch {
		case len(f) == 3 && f[0] == "Size:":
			n, _ := strconv.ParseInt(f[1], 10, 64)
			guests = n<<10 >= memory && n<<10 <= memory+maxHeap
			found = found || guests
		case len(f) == 3 && f[0] == "Pss:" && !guests:
			n, _ := strconv.ParseInt(f[1], 10, 64)
			sum += n << 10
		}
	}
	if !found || sum == 0 {
		b.Fatalf("no mapping of process %d has %d bytes, or the others nothing: %d", pid, memory, sum)
	}
	return sum
}

// maxHeap is how large a heap is at most that the guest's memory is one mapping with; a
// thread's of the C library begins with 132 KiB.
const maxHeap = 1 << 20
