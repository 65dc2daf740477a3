package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/client"
	"banger/internal/disk"
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/store"
)

// many is how many VMs an installation is to bear with ease.
const many = 1000

// within prints the ratio of the median of ours to the time that it may take, which
// stands for the floor: nothing else does the same.
func within(b *testing.B, name string, limit time.Duration, ours func() time.Duration) {
	b.Helper()
	var took []time.Duration
	for range rounds {
		took = append(took, ours())
		if b.Failed() {
			return
		}
	}
	slices.Sort(took)
	median := took[rounds/2]
	fmt.Printf("%s ratio=%.2f goal<=1.00 ours=%v floor=%v\n", name, float64(median)/float64(limit), median.Round(10*time.Microsecond), limit)
}

// newCrowd is an installation with many VMs, each of which holds what one does that was
// started and stopped: its directory and its disks. No daemon runs.
func newCrowd(b *testing.B) *hosttest.Host {
	b.Helper()
	h := hosttest.NewSeeded(b)
	h.VMs(b)
	c := client.New(h.Paths.Socket())
	size := int64(64 << 20)
	var ids []string
	for i := range many {
		vm, op, err := c.CreateVM(b.Context(), api.CreateVM{Name: fmt.Sprintf("vm-%d", i), RootSize: size, DiskSize: &size})
		if err == nil {
			_, err = c.Wait(b.Context(), op.ID, nil)
		}
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, vm.ID)
	}
	h.StopDaemon(b)
	db, err := store.Open(b.Context(), filepath.Join(h.Paths.State, "banger.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	boot, err := linux.BootID()
	if err != nil {
		b.Fatal(err)
	}
	uppers, works := disk.New(disk.KindUpper, h.Paths.State), disk.New(disk.KindWork, h.Paths.State)
	ledger := resource.New(db, boot, slog.New(slog.DiscardHandler), resource.NewDir("dir", h.Paths.State, false, "vms"), uppers, works)
	acquire := func(id, kind, name string, spec any) {
		if _, err := ledger.Acquire(b.Context(), "vm/"+id, kind, name, spec); err != nil {
			b.Fatal(err)
		}
	}
	for _, id := range ids {
		dir := "vms/" + id
		acquire(id, disk.KindUpper, uppers.Name(dir), disk.Spec{Size: size})
		acquire(id, disk.KindWork, works.Name(dir), disk.Spec{Size: size})
	}
	return h
}

// BenchmarkScale takes the times of an installation with many VMs: from the start of a
// command line, which starts a daemon that recovers, to its end; the same where the
// daemon is there; and the memory of the daemon.
func BenchmarkScale(b *testing.B) {
	h := newCrowd(b)
	list := func() time.Duration { return timed(b, h.Command(b.Context(), "vm", "list")) }
	list() // the first time, each VM gets its second copy
	within(b, "recover-1000", time.Second, func() time.Duration {
		h.StopDaemon(b)
		return list()
	})
	within(b, "list-1000", 20*time.Millisecond, list)
	memory(b, "memory-1000", h.DaemonPID(), 30<<20+many*100<<10)
	if len(h.VMs(b)) != many {
		b.Errorf("there are %d VMs", len(h.VMs(b)))
	}
	deleteAll(b, h)
	h.StopDaemon(b)
	h.VMs(b)
	memory(b, "memory-0", h.DaemonPID(), 30<<20)
}

// deleteAll deletes the VMs, some at a time: the check at the end would do it one by one.
func deleteAll(b *testing.B, h *hosttest.Host) {
	b.Helper()
	c := client.New(h.Paths.Socket())
	var ops []api.Operation
	for _, id := range h.VMs(b) {
		op, err := c.DeleteVM(b.Context(), id, true)
		if err != nil {
			b.Fatal(err)
		}
		ops = append(ops, op)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	for _, op := range ops {
		if _, err := c.Wait(ctx, op.ID, nil); err != nil && api.CodeOf(err) != api.CodeNotFound {
			b.Fatal(err)
		}
	}
}

// memory prints what of a process is in memory and not in a file, beside what may be.
func memory(b *testing.B, name string, pid int, limit int64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "RssAnon:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	const mib = 1 << 20
	fmt.Printf("%s ratio=%.2f goal<=1.00 ours=%.1fMiB floor=%.1fMiB\n", name, float64(kib<<10)/float64(limit), float64(kib<<10)/mib, float64(limit)/mib)
}

// BenchmarkOwn takes, of the time line of starts, what the daemon itself needs: disks,
// network, cgroup and ledger, without the VMM's process and the guest.
func BenchmarkOwn(b *testing.B) {
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "m", "--", "true")
	within(b, "own", 25*time.Millisecond, func() time.Duration {
		h.Must(b, "vm", "restart", "m")
		var m api.VM
		if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "m", "--json")), &m); err != nil {
			b.Fatal(err)
		}
		own := 0.0
		for _, s := range m.Steps {
			if !slices.Contains([]string{"process", "kernel", "agent"}, s.Name) {
				own += s.Seconds
			}
		}
		return time.Duration(own * float64(time.Second))
	})
}
