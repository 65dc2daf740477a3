package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/vm"
	"banger/internal/vmm"
)

// The machines of these tests stand still and go on as real ones do: while one is paused
// its agent does not answer, and whenever one begins to run or goes on it writes to its
// disks. A snapshot holds what the guest knows and what was on its disks: who has a
// machine go on from one with other disks has found the worst that can happen.

// memoryFile is the file of a snapshot.
const memoryFile = "memory"

// memory is what a snapshot of these machines holds.
type memory struct {
	Memory string
	Disks  []string
	Rest   []byte // so that it takes some pages
}

// label is the place on a disk that a running machine writes to: the boot block, which
// ext4 leaves alone.
const label = 16

// write is what a machine does to its disks when it begins to run or goes on.
func (m *machine) write() {
	for _, d := range m.Disks {
		if f, err := os.OpenFile(d.Path, os.O_WRONLY, 0); err == nil && !d.ReadOnly && !d.Block {
			_, _ = f.WriteAt([]byte(resource.RandomName(label/2)), 0) // a full disk is the guest's affair
			_ = f.Close()
		}
	}
}

// labels are what the machine's disks hold.
func (m *machine) labels() (all []string, err error) {
	for _, d := range m.Disks {
		if d.ReadOnly || d.Block {
			continue
		}
		f, err := os.Open(d.Path)
		if err != nil {
			return nil, err
		}
		text := make([]byte, label)
		_, err = f.ReadAt(text, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		all = append(all, string(text))
	}
	return all, nil
}

func (i instance) Pause(context.Context) error {
	if err := i.driver.gate.pass(); err != nil {
		return err
	}
	i.driver.mu.Lock()
	defer i.driver.mu.Unlock()
	if i.dead() {
		return errors.New("pause machine: it has ended")
	}
	if i.paused == nil {
		i.paused = make(chan struct{})
	}
	return i.driver.answer()
}

// answer is an error where a VMM has done what it was told to and does not say so; mu is
// held.
func (h *machines) answer() error {
	if h.mute == 0 {
		return nil
	}
	h.mute--
	return os.ErrDeadlineExceeded
}

func (i instance) Resume(context.Context) error {
	if err := i.driver.gate.pass(); err != nil {
		return err
	}
	i.driver.mu.Lock()
	defer i.driver.mu.Unlock()
	if i.dead() {
		return errors.New("resume machine: it has ended")
	}
	if i.paused != nil {
		i.write()
		close(i.paused)
		i.paused = nil
	}
	return i.driver.answer()
}

func (i instance) Snapshot(ctx context.Context, dir string) error {
	if err := errors.Join(i.driver.gate.pass(), ctx.Err()); err != nil {
		return err
	}
	i.driver.mu.Lock()
	defer i.driver.mu.Unlock()
	if i.paused == nil {
		i.driver.t.Errorf("snapshot of machine %s, which runs", i.ID)
	}
	labels, err := i.labels()
	if err != nil {
		return err
	}
	text, err := json.Marshal(memory{i.memory, labels, make([]byte, 64<<10)})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, memoryFile), text, 0o600)
	}
	return err
}

func (d driver) Restore(ctx context.Context, spec vmm.Machine, dir string) (vmm.Instance, error) {
	text, err := os.ReadFile(filepath.Join(dir, memoryFile))
	if err != nil {
		return nil, err
	}
	m := &machine{Machine: spec, exited: make(chan struct{}), paused: make(chan struct{})}
	var saved memory
	if err := json.Unmarshal(text, &saved); err != nil {
		return nil, fmt.Errorf("read memory: %w", err)
	}
	m.memory = saved.Memory
	if labels, err := m.labels(); err != nil || fmt.Sprint(labels) != fmt.Sprint(saved.Disks) {
		d.t.Errorf("machine %s goes on from a snapshot with other disks: %q, then %q, %v", m.ID, saved.Disks, labels, err)
	}
	return d.launch(ctx, m)
}

// standing returns the ids of the VMs whose machine stands still.
func (h *machines) standing() map[string]bool {
	all := map[string]bool{}
	for _, m := range h.running() {
		h.mu.Lock()
		all[m.ID] = m.paused != nil
		h.mu.Unlock()
	}
	return all
}

// known returns what the guest of a VM knows; empty where it has no machine.
func (h *machines) known(id string) string {
	if m := h.of(id); m != nil {
		return m.memory
	}
	return ""
}

// standstill is what a daemon of its own asks of its machines.
type standstill struct {
	Machine vmm.Machine
	Dir     string
}

// serveStandstill lets daemons that are processes of their own have their machines stand
// still and go on.
func (s *machineServer) serveStandstill(mux *http.ServeMux) {
	serve := func(verb string, do func(driver, standstill) (pid int, err error)) {
		mux.HandleFunc("POST /"+verb+"/{world}", func(rw http.ResponseWriter, r *http.Request) {
			var given standstill
			err := json.NewDecoder(r.Body).Decode(&given)
			pid := 0
			if err == nil {
				pid, err = do(driver{s.world(r.PathValue("world")), newGate(0)}, given)
			}
			if err != nil {
				http.Error(rw, err.Error(), http.StatusConflict)
				return
			}
			_, _ = fmt.Fprint(rw, pid) // who asked may have died
		})
	}
	on := func(do func(instance, standstill) error) func(driver, standstill) (int, error) {
		return func(d driver, given standstill) (int, error) {
			m := d.of(given.Machine.ID)
			if m == nil {
				return 0, errors.New("it has ended")
			}
			return 0, do(instance{m, d, true}, given)
		}
	}
	mux.HandleFunc("POST /standing/{world}", func(rw http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(rw).Encode(s.world(r.PathValue("world")).standing())
	})
	ctx := context.Background()
	serve("pause", on(func(i instance, _ standstill) error { return i.Pause(ctx) }))
	serve("resume", on(func(i instance, _ standstill) error { return i.Resume(ctx) }))
	serve("snapshot", on(func(i instance, given standstill) error { return i.Snapshot(ctx, given.Dir) }))
	serve("restore", func(d driver, given standstill) (int, error) {
		inst, err := d.Restore(ctx, given.Machine, given.Dir)
		if err != nil {
			return 0, err
		}
		return inst.PID(), nil
	})
}

func (i *remoteInstance) tell(ctx context.Context, verb, dir string) error {
	return i.driver.ask(ctx, verb+"/"+i.driver.installed, standstill{i.Machine, dir}, new(int))
}

func (i *remoteInstance) Pause(ctx context.Context) error  { return i.tell(ctx, "pause", "") }
func (i *remoteInstance) Resume(ctx context.Context) error { return i.tell(ctx, "resume", "") }
func (i *remoteInstance) Snapshot(ctx context.Context, dir string) error {
	if err := i.tell(ctx, "snapshot", dir); err != nil {
		return err
	}
	return linux.SyncFile(dir)
}

func (d remoteDriver) Restore(ctx context.Context, m vmm.Machine, dir string) (vmm.Instance, error) {
	if err := d.ask(ctx, "restore/"+d.installed, standstill{m, dir}, new(int)); err != nil {
		return nil, err
	}
	return d.Attach(ctx, m)
}

// standstillLie is something that the daemon says of what stands still and that is not so.
func (w *world) standstillLie(vms []api.VM) string {
	refs, err := w.db.Resources(context.Background(), "")
	if err != nil {
		return err.Error()
	}
	snapshots := map[string]int{}
	for _, ref := range refs {
		if ref.Kind == vm.KindSuspended {
			snapshots[ref.Owner]++
		}
	}
	standing := w.standing()
	for _, v := range vms {
		if n := snapshots["vm/"+v.ID]; (v.State == api.VMSuspended) != (n == 1) || n > 1 {
			return fmt.Sprintf("VM %q is %s and has %d snapshots", v.Name, v.State, n)
		}
		if (v.State == api.VMPaused) != standing[v.ID] {
			return fmt.Sprintf("VM %q is %s; it stands still: %t", v.Name, v.State, standing[v.ID])
		}
	}
	return ""
}

// standing returns which of the VMs on the host have a machine that stands still.
func (w *world) standing() (standing map[string]bool) {
	if w.remote == "" {
		return w.machines.standing()
	}
	if err := (remoteDriver{w.remote, w.installed}).ask(context.Background(), "standing/"+w.installed, nil, &standing); err != nil {
		w.t.Fatal(err)
	}
	return standing
}
