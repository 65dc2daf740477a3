package vm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// A daemon that is to die is a process of its own, so that it dies as the real one
// does: by SIGKILL, in the middle of whatever its threads are at. The VMMs that it
// starts are the children of the test, since they outlive it; it asks for them over a
// socket.

// beDaemon says, in the environment, that the process is such a daemon, and which.
const beDaemon = "BANGER_TEST_DAEMON"

// duty is what such a daemon does.
type duty struct {
	State, Run, Installed string
	Subnet                netip.Prefix
	VMMs                  string // the socket to ask for machines
	Action                string // which it prepares and does; none: it only recovers
	Clears                bool   // whether it looks after that at what there is, and clears it away
}

// The exit statuses of such a daemon, beside its death.
const (
	exitDone    = 0
	exitRefused = 4 // the action ended with an error, which it has printed
	exitBroken  = 5 // what should have worked did not
)

// spawn runs a daemon with a duty and a failpoint to its end. It returns its exit
// status, -1 where it was killed, and what it printed.
func (w *world) spawn(action string, clears bool, env ...string) (status int, said string) {
	w.t.Helper()
	text, err := json.Marshal(duty{w.state, w.run, w.installed, w.subnet, w.machines.socket, action, clears})
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), beDaemon+"="+string(text)), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, w.log
	cmd.WaitDelay = patience
	_ = cmd.Run() // its status is looked at
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() != syscall.SIGKILL {
		w.t.Errorf("the daemon was ended by %v", ws.Signal())
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// runDaemon is the main function of such a daemon.
func runDaemon() int {
	var d duty
	if err := json.Unmarshal([]byte(os.Getenv(beDaemon)), &d); err != nil {
		fmt.Println(err)
		return exitBroken
	}
	w := &world{
		t: &daemonTester{}, whole: true, state: d.State, run: d.Run, installed: d.Installed, subnet: d.Subnet, remote: d.VMMs, log: &logBuffer{}, root: api.RootDiskOverlay,
	}
	act, known := actions[d.Action]
	armed := failpoint.FromEnv
	if !known { // the recovery is what may fail
		armed = func() error { return nil }
		w.must(failpoint.FromEnv())
	}
	w.must(w.boot(0))
	if known {
		w.prepare(act)
	}
	w.must(armed())
	status := exitDone
	if known {
		pids := w.pids()
		err := act.do(w)
		failpoint.Arm(nil)
		if err != nil {
			fmt.Println(err)
			status = exitRefused
		}
		if d.Clears {
			w.refused(act, err)
			w.afterwards(d.Action, pids)
		}
	}
	w.down()
	if w.t.(*daemonTester).failed.Load() {
		fmt.Fprintf(os.Stdout, "%s", w.log.text)
		return exitBroken
	}
	return status
}

// must ends the test, or the daemon, on an error.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// daemonTester is the tester of a process that is no test.
type daemonTester struct{ failed atomic.Bool }

func (*daemonTester) Helper()        {}
func (*daemonTester) Cleanup(func()) {}
func (d *daemonTester) Skip(args ...any) {
	d.Fatal(args...)
}

func (d *daemonTester) Error(args ...any) {
	d.failed.Store(true)
	fmt.Println(args...)
}

func (d *daemonTester) Errorf(format string, args ...any) { d.Error(fmt.Sprintf(format, args...)) }

func (d *daemonTester) Fatal(args ...any) {
	fmt.Println(args...)
	os.Exit(exitBroken)
}

func (d *daemonTester) Fatalf(format string, args ...any) { d.Fatal(fmt.Sprintf(format, args...)) }

// machineServer lets daemons that are processes of their own have machines.
type machineServer struct {
	socket  string
	mu      sync.Mutex
	worlds  map[string]*machines // by installation
	mappers map[string]*hosttest.Mapper
}

// serveMachines serves until the end of t.
func serveMachines(t tester) *machineServer {
	t.Helper()
	s := &machineServer{socket: filepath.Join(memoryDir(t), "vmms.sock"), worlds: map[string]*machines{}, mappers: map[string]*hosttest.Mapper{}}
	listener, err := linux.ListenUnix(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /start/{world}", func(rw http.ResponseWriter, r *http.Request) {
		var spec vmm.Machine
		err := json.NewDecoder(r.Body).Decode(&spec)
		var inst vmm.Instance
		if err == nil {
			inst, err = driver{s.world(r.PathValue("world")), newGate(0)}.Start(context.Background(), spec)
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusConflict)
			return
		}
		_, _ = fmt.Fprint(rw, inst.PID()) // who asked may have died
	})
	mux.HandleFunc("POST /pids/{world}", func(rw http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(rw).Encode(s.world(r.PathValue("world")).pids())
	})
	mux.HandleFunc("POST /power/{world}/{id}", func(rw http.ResponseWriter, r *http.Request) {
		m := s.world(r.PathValue("world")).of(r.PathValue("id"))
		if m != nil {
			_ = instance{machine: m, started: true}.PowerButton(r.Context()) // it may have ended
		}
		_ = json.NewEncoder(rw).Encode(m != nil)
	})
	s.serveStandstill(mux)
	s.serveMapper(mux)
	server := &http.Server{Handler: mux}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	return s
}

func (s *machineServer) world(installed string) *machines {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.worlds[installed]
}

// admit lets the daemons of a world have its machines.
func (s *machineServer) admit(w *world) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.machines.socket = s.socket
	s.worlds[w.installed], s.mappers[w.installed] = w.machines, w.mapper
}

// remoteDriver implements vmm.Driver over a machineServer.
type remoteDriver struct{ socket, installed string }

func (remoteDriver) Name() string { return "cat" }

func (remoteDriver) Check(context.Context) (vmm.Info, error) {
	return vmm.Info{Binary: "/bin/cat", Version: "1", Accel: "none"}, nil
}

// ask has the server do something with what it is given, and decodes its answer.
func (d remoteDriver) ask(ctx context.Context, what string, given, answer any) error {
	text, err := json.Marshal(given)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return linux.DialUnix(ctx, d.socket) }}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vmms/"+what, bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", what, response.Status)
	} else {
		err = json.NewDecoder(response.Body).Decode(answer)
	}
	return errors.Join(err, response.Body.Close())
}

func (d remoteDriver) Start(ctx context.Context, m vmm.Machine) (vmm.Instance, error) {
	var pid int
	if err := d.ask(ctx, "start/"+d.installed, m, &pid); err != nil {
		return nil, err
	}
	return d.Attach(ctx, m)
}

func (d remoteDriver) Attach(_ context.Context, m vmm.Machine) (vmm.Instance, error) {
	pids, err := linux.CgroupPIDs(m.Cgroup)
	if err != nil || len(pids) != 1 {
		return nil, fmt.Errorf("attach to machine %s: processes %v in its cgroup: %v", m.ID, pids, err)
	}
	pidfd, err := linux.OpenPidfd(pids[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	i := &remoteInstance{Machine: m, driver: d, pid: pids[0], exited: make(chan struct{}), unwatch: cancel}
	go func() {
		defer pidfd.Close()
		if linux.AwaitEnd(ctx, pidfd) == nil {
			i.exit.At = time.Now()
			close(i.exited)
		}
	}()
	return i, nil
}

// remoteInstance implements vmm.Instance.
type remoteInstance struct {
	vmm.Machine
	driver  remoteDriver
	pid     int
	exited  chan struct{}
	exit    vmm.Exit
	unwatch context.CancelFunc
}

func (i *remoteInstance) PID() int { return i.pid }

func (i *remoteInstance) Dial(ctx context.Context) (net.Conn, error) {
	return linux.DialUnix(ctx, filepath.Join(i.RunDir, "agent.sock"))
}

func (i *remoteInstance) Channel() vmm.Channel { return vmm.ChannelSerial }

func (i *remoteInstance) PowerButton(ctx context.Context) error {
	return i.driver.ask(ctx, "power/"+i.driver.installed+"/"+i.ID, nil, new(bool))
}

func (i *remoteInstance) ResizeDisk(_ context.Context, disk int, size int64) error {
	return sized(i.Disks[disk].Path, size)
}

func (i *remoteInstance) Exited() <-chan struct{} { return i.exited }
func (i *remoteInstance) Exit() vmm.Exit          { return i.exit }
func (i *remoteInstance) Close() error            { i.unwatch(); return nil }
