package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// mood is how a machine of these tests behaves.
type mood int

const (
	obedient  mood = iota
	stubborn       // ignores the power-off and the power button
	silent         // its agent never answers
	hopeless       // its agent says that it gives up, and the machine stays on
	stillborn      // its VMM ends before the agent answers
	unable         // its VMM does not start
)

// machines are the VMMs on the host: processes in cgroups that outlive the Service
// which started them. Each has an agent that speaks the real protocol on the real
// socket; it is in the test's process, and answers as long as the VMM lives.
type machines struct {
	t      tester
	socket string // where daemons that are other processes ask for them; see machineServer

	mu   sync.Mutex
	next []mood // of the machines to be started; obedient ones follow
	mute int    // how many times more a VMM that stands still or goes on does not say so
	live map[string]*machine
}

// machine is one VMM: cat, which ends by itself when its input does.
type machine struct {
	vmm.Machine
	mood   mood
	cmd    *exec.Cmd
	power  io.Closer // the VMM's input
	exited chan struct{}
	exit   vmm.Exit
	hung   chan struct{} // open while the agent does not answer; nil otherwise
	paused chan struct{} // open while it stands still; nil otherwise
	memory string        // what the guest knows, from its start on: random
}

// plan says how the machines that are started next behave.
func (h *machines) plan(moods ...mood) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = moods
}

// running returns the machines whose VMM has not ended.
func (h *machines) running() []*machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*machine
	for _, m := range h.live {
		if !m.dead() {
			all = append(all, m)
		}
	}
	return all
}

// dead says that the VMM has ended, which its parent may not have noticed yet.
func (m *machine) dead() bool {
	pids, err := linux.CgroupPIDs(m.Cgroup)
	return err != nil || len(pids) == 0
}

// pids returns the processes of the VMMs that have not ended, by the id of the VM.
func (h *machines) pids() map[string]int {
	pids := map[string]int{}
	for _, m := range h.running() {
		pids[m.ID] = m.cmd.Process.Pid
	}
	return pids
}

// of returns the machine of the VM id, or nil.
func (h *machines) of(id string) *machine {
	for _, m := range h.running() {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// driver implements vmm.Driver over machines, for one Service.
type driver struct {
	*machines
	gate *gate
}

func (d driver) Name() string { return "cat" }

func (d driver) Check(context.Context) (vmm.Info, error) {
	return vmm.Info{Binary: "/bin/cat", Version: "1", Accel: "none"}, d.gate.pass()
}

func (d driver) Start(ctx context.Context, spec vmm.Machine) (vmm.Instance, error) {
	return d.launch(ctx, &machine{Machine: spec, exited: make(chan struct{}), memory: resource.RandomName(8)})
}

// launch starts a machine that knows something already, and may stand still.
func (d driver) launch(ctx context.Context, m *machine) (vmm.Instance, error) {
	if err := errors.Join(d.gate.pass(), ctx.Err()); err != nil {
		return nil, err
	}
	spec := m.Machine
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.next) > 0 {
		m.mood, d.next = d.next[0], d.next[1:]
	}
	for _, other := range d.live {
		for _, disk := range spec.Disks {
			if !disk.ReadOnly && !other.dead() && slices.Contains(other.Disks, disk) {
				d.t.Errorf("two VMMs write to %s", disk.Path)
			}
		}
	}
	if m.mood == unable {
		return nil, errors.New("start cat: it has no wish to")
	}
	if m.paused == nil {
		m.write()
	}
	if err := m.start(); err != nil {
		return nil, err
	}
	d.live[spec.Cgroup] = m
	listener, err := linux.ListenUnix(filepath.Join(spec.RunDir, "agent.sock"))
	if err != nil {
		return nil, errors.Join(err, m.cmd.Process.Kill())
	}
	server := &http.Server{Handler: m.agent(d.machines)}
	go m.listen(listener, server)
	go func() {
		_ = m.cmd.Wait() // its status is looked at
		m.exit = vmm.Exit{Known: true, Code: m.cmd.ProcessState.ExitCode(), At: time.Now()}
		if ws := m.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			m.exit.Signal = ws.Signal().String()
		}
		_ = m.power.Close()
		_ = listener.Close()
		_ = server.Close()
		d.mu.Lock()
		delete(d.live, spec.Cgroup)
		d.mu.Unlock()
		close(m.exited)
	}()
	switch m.mood {
	case stillborn:
		_ = m.power.Close()
	case hopeless:
		if err := os.WriteFile(spec.Console, []byte("[    1.0] booted\nbanger-agent: no disk vda; powering off\n"), 0o600); err != nil {
			return nil, err
		}
	}
	return instance{m, d, true}, nil
}

// start runs the VMM in its cgroup.
func (m *machine) start() error {
	cgroup, err := os.Open(m.Cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	m.cmd = exec.Command("/bin/cat")
	m.cmd.Dir = m.RunDir
	m.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if m.power, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	return m.cmd.Start()
}

// listen serves the agent on each connection, of which the latest counts.
func (m *machine) listen(listener net.Listener, server *http.Server) {
	boot, err := wire.ParseBoot(m.Cmdline)
	if err != nil {
		return
	}
	var last *wire.Listener
	for {
		conn, err := listener.Accept()
		if last != nil {
			_ = last.Close()
		}
		if err != nil {
			return
		}
		if m.mood == silent || m.mood == hopeless {
			go func() { <-m.exited; _ = conn.Close() }()
			continue
		}
		last = wire.Listen(conn, boot.Sync)
		go func(l *wire.Listener) { _ = server.Serve(l) }(last)
	}
}

// agent is what the guest answers.
func (m *machine) agent(h *machines) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(wire.Greeting{Protocol: wire.Protocol})
	})
	mux.HandleFunc("POST /poweroff", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		if m.mood != stubborn {
			_ = m.power.Close()
		}
	})
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(tarOf(map[string]string{"id": m.ID})) // its root
	})
	mux.HandleFunc("GET /layer", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(tarOf(map[string]string{"id": m.ID, "bin/.wh.true": ""})) // what it has written
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		hung, paused := m.hung, m.paused
		h.mu.Unlock()
		for _, until := range []chan struct{}{hung, paused} {
			if until == nil {
				continue
			}
			select {
			case <-until:
			case <-m.exited:
			case <-r.Context().Done():
			}
		}
		mux.ServeHTTP(w, r)
	})
}

// hang has the agent of a machine stop to answer, until wake is called.
func (h *machines) hang(m *machine) (wake func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.hung != nil {
		return func() {}
	}
	hung := make(chan struct{})
	m.hung = hung
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		m.hung = nil
		close(hung)
	}
}

func (d driver) Attach(_ context.Context, spec vmm.Machine) (vmm.Instance, error) {
	if err := d.gate.pass(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.live[spec.Cgroup]
	if !ok {
		return nil, fmt.Errorf("attach to machine %s: no process in %s", spec.ID, spec.Cgroup)
	}
	if len(spec.Disks) > 0 && !slices.Equal(m.Disks, spec.Disks) {
		d.t.Errorf("machine %s was started with disks %v, it is attached to with %v", spec.ID, m.Disks, spec.Disks)
	}
	return instance{m, d, false}, nil
}

// instance implements vmm.Instance.
type instance struct {
	*machine
	driver  driver
	started bool // by the Service that has it
}

func (i instance) PID() int { return i.cmd.Process.Pid }

func (i instance) Dial(ctx context.Context) (net.Conn, error) {
	return linux.DialUnix(ctx, filepath.Join(i.RunDir, "agent.sock"))
}

func (i instance) Channel() vmm.Channel { return vmm.ChannelSerial }

func (i instance) PowerButton(context.Context) error {
	if i.mood != stubborn && i.mood != silent {
		return i.power.Close()
	}
	return nil
}

func (i instance) ResizeDisk(_ context.Context, disk int, size int64) error {
	return sized(i.Disks[disk].Path, size)
}

// sized checks what a machine is told of the size of a disk.
func sized(path string, size int64) error {
	info, err := os.Stat(path)
	if err == nil && info.Size() != size {
		err = fmt.Errorf("resize disk %s: %d bytes, its file has %d", path, size, info.Size())
	}
	return err
}

func (i instance) Exited() <-chan struct{} { return i.exited }

func (i instance) Exit() vmm.Exit {
	if !i.started {
		return vmm.Exit{At: i.exit.At}
	}
	return i.exit
}

func (i instance) Close() error { return nil }
