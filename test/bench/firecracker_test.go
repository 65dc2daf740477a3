package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/vmm"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/vmmtest"
)

// firecrackerRounds is how often a machine is started: where KVM is emulated that takes long,
// and one time a quarter longer than another.
const firecrackerRounds = 11

// BenchmarkFirecracker compares machines that the driver starts on Firecracker, jailed,
// until their agent answers, with the same machines by hand: jailed and limited too, booted
// from a file with their configuration, and woken by Firecracker's own restore. It compares
// too what they take beside their guests' memory. make test-firecracker runs it where KVM is.
func BenchmarkFirecracker(b *testing.B) {
	boot := vmmtest.BootFromEnv(b)
	o := firecracker.Options{Binary: os.Getenv("BANGER_FIRECRACKER"), Jailer: os.Getenv("BANGER_JAILER")}
	if o.Binary == "" || o.Jailer == "" {
		b.Skip("not run: BANGER_FIRECRACKER and BANGER_JAILER name none")
	}
	driver := firecracker.New(o)
	if _, err := driver.Check(b.Context()); err != nil {
		b.Skip("not run here: ", err)
	}
	model := newFirecrackerModel(b, o, boot)
	m, _ := vmmtest.NewMachine(b, boot)
	var asleep string // of ours
	var own, its int64
	compare(b, "firecracker-start", firecrackerRounds, 1.10,
		func() time.Duration {
			again, kill := renewed(b, m, boot)
			took, inst := reach(b, func() (vmm.Instance, error) { return driver.Start(b.Context(), again) })
			own = overhead(b, inst.PID(), m.Memory)
			if asleep == "" {
				asleep = snapshot(b, inst)
			}
			end(b, inst, kill)
			return took
		},
		func() time.Duration {
			took, hand := model.boot(b)
			its = overhead(b, hand.cmd.Process.Pid, m.Memory)
			if model.asleep == "" {
				model.sleep(b, hand)
			}
			hand.kill()
			return took
		})
	fmt.Printf("firecracker-overhead ratio=%.2f goal<=1.10 ours=%.1fMiB floor=%.1fMiB\n", float64(own)/float64(its), mib(own), mib(its))
	compare(b, "firecracker-wake", firecrackerRounds, 1.50,
		func() time.Duration {
			again, kill := renewed(b, m, boot)
			took, inst := reach(b, func() (vmm.Instance, error) {
				inst, err := driver.Restore(b.Context(), again, asleep)
				if err == nil {
					err = inst.Resume(b.Context())
				}
				return inst, err
			})
			end(b, inst, kill)
			return took
		},
		func() time.Duration {
			took, hand := model.wake(b)
			hand.kill()
			return took
		})
}

// renewed is a machine for another run, with the disks of the first.
func renewed(b *testing.B, m vmm.Machine, boot vmmtest.Boot) (vmm.Machine, func() error) {
	b.Helper()
	again, kill := vmmtest.NewMachine(b, boot)
	again.Disks = m.Disks
	linux.Sync() // else what was left before is written meanwhile
	return again, kill
}

// reach returns how long it takes until the agent answers of a machine that begin starts.
func reach(b *testing.B, begin func() (vmm.Instance, error)) (time.Duration, vmm.Instance) {
	b.Helper()
	began := time.Now()
	inst, err := begin()
	if err != nil {
		b.Fatal(err)
	}
	answers(b, inst.Dial)
	return time.Since(began), inst
}

// answers waits until the agent at a channel does.
func answers(b *testing.B, dial guest.Dialer) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	conn, err := guest.Connect(ctx, guest.Stream, dial, "")
	if err != nil {
		b.Fatal(err)
	}
	conn.Close()
}

// snapshot leaves what a machine is in a directory.
func snapshot(b *testing.B, inst vmm.Instance) string {
	b.Helper()
	dir := b.TempDir()
	if err := inst.Pause(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := inst.Snapshot(b.Context(), dir); err != nil {
		b.Fatal(err)
	}
	return dir
}

// end kills a machine and waits for that.
func end(b *testing.B, inst vmm.Instance, kill func() error) {
	b.Helper()
	if err := kill(); err != nil {
		b.Fatal(err)
	}
	<-inst.Exited()
}

// firecrackerModel is a machine as its Firecracker describes it, to be run without banger
// as Firecracker's documentation has it: by the jailer, in a chroot with its files, and in a
// cgroup, which takes time where each page of the guest's is accounted for.
type firecrackerModel struct {
	program, jailer string
	config          []byte            // what --config-file takes
	files           map[string]string // by their names in the chroot
	asleep          string            // directory of a snapshot
}

func newFirecrackerModel(b *testing.B, o firecracker.Options, boot vmmtest.Boot) *firecrackerModel {
	b.Helper()
	model := &firecrackerModel{program: o.Binary, jailer: o.Jailer, files: map[string]string{"kernel": boot.Kernel, "initrd": boot.Initrd}}
	o.NoJail = true // it says where its files are
	m, kill := vmmtest.NewMachine(b, boot)
	_, inst := reach(b, func() (vmm.Instance, error) { return firecracker.New(o).Start(b.Context(), m) })
	sockets, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", inst.PID()))
	if err != nil {
		b.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(request(b, sockets, http.MethodGet, "/vm/config", nil), &config); err != nil {
		b.Fatal(err)
	}
	end(b, inst, kill)
	for _, given := range []string{"logger", "metrics", "mmds-config"} { // on the command line, or not at all
		delete(config, given)
	}
	source, drives := config["boot-source"].(map[string]any), config["drives"].([]any)
	source["kernel_image_path"], source["initrd_path"] = "/kernel", "/initrd"
	id := func(drive any) string { return drive.(map[string]any)["drive_id"].(string) } // d0 to d3
	slices.SortFunc(drives, func(x, y any) int { return cmp.Compare(id(x), id(y)) })    // one that runs does not tell their order
	for n, d := range drives {
		d.(map[string]any)["path_on_host"] = "/" + id(d)
		model.files[id(d)] = m.Disks[n].Path
	}
	if model.config, err = json.Marshal(config); err != nil {
		b.Fatal(err)
	}
	return model
}

// request makes a request of the Firecracker whose socket is in a directory.
func request(b *testing.B, dir, method, path string, body []byte) []byte {
	b.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		for wait := time.Millisecond; ; wait = min(2*wait, 16*time.Millisecond) { // as ours does
			conn, err := linux.DialUnixIn(ctx, dir, "api.sock")
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			time.Sleep(wait)
		}
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		b.Fatalf("%s %s: %s: %s, %v", method, path, resp.Status, text, err)
	}
	return text
}

// boot starts the machine from its configuration and returns how long it took until its
// agent had said that it listens, and answered.
func (f *firecrackerModel) boot(b *testing.B) (time.Duration, *handMachine) {
	b.Helper()
	m := f.prepare(b, f.files)
	if err := os.WriteFile(filepath.Join(m.dir, "config.json"), f.config, 0o600); err != nil {
		b.Fatal(err)
	}
	ready, err := linux.ListenUnix(filepath.Join(m.dir, fmt.Sprintf("v.sock_%d", wire.ReadyPort)))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = ready.Close() }()
	if err := ready.(*net.UnixListener).SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	m.start(b, "--config-file", "config.json")
	said, err := ready.Accept()
	if err != nil {
		b.Fatal(err)
	}
	_ = said.Close() // it carries nothing
	answers(b, m.connectAgent)
	return time.Since(began), m
}

// sleep leaves what a machine is to be woken by.
func (f *firecrackerModel) sleep(b *testing.B, m *handMachine) {
	b.Helper()
	f.asleep = b.TempDir()
	request(b, m.dir, http.MethodPatch, "/vm", []byte(`{"state":"Paused"}`))
	request(b, m.dir, http.MethodPut, "/snapshot/create", []byte(`{"snapshot_path":"state","mem_file_path":"memory"}`))
	for _, name := range []string{"state", "memory"} {
		provide(b, filepath.Join(f.asleep, name), filepath.Join(m.dir, name))
	}
}

// wake restores the machine and returns how long it took until its agent answered.
func (f *firecrackerModel) wake(b *testing.B) (time.Duration, *handMachine) {
	b.Helper()
	files := maps.Clone(f.files)
	files["state"], files["memory"] = filepath.Join(f.asleep, "state"), filepath.Join(f.asleep, "memory")
	m := f.prepare(b, files)
	began := time.Now()
	m.start(b)
	request(b, m.dir, http.MethodPut, "/snapshot/load",
		[]byte(`{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"resume_vm":true}`))
	answers(b, m.connectAgent)
	return time.Since(began), m
}

// prepare makes a chroot for a machine.
func (f *firecrackerModel) prepare(b *testing.B, files map[string]string) *handMachine {
	b.Helper()
	base := b.TempDir()
	root := filepath.Join(base, filepath.Base(f.program), "hand", "root") // the jailer's choice
	if err := os.MkdirAll(root, 0o700); err != nil {
		b.Fatal(err)
	}
	for name, path := range files {
		provide(b, filepath.Join(root, name), path)
	}
	linux.Sync()
	cmd := exec.Command(f.jailer, "--id", "hand", "--exec-file", f.program, "--uid", "0", "--gid", "0", "--chroot-base-dir", base, "--", "--api-sock", "api.sock")
	return &handMachine{dir: root, cmd: cmd}
}

// provide has a file appear at a path, at no cost where it is on the same file system.
func provide(b *testing.B, at, path string) {
	b.Helper()
	err := os.Link(path, at)
	if errors.Is(err, syscall.EXDEV) {
		err = linux.CopySparse(at, path)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// start runs a machine that is prepared, with more arguments for the VMM.
func (m *handMachine) start(b *testing.B, args ...string) {
	b.Helper()
	console, err := os.Create(filepath.Join(m.dir, "console.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = console.Close() }()
	m.cmd.Args = append(m.cmd.Args, args...)
	m.cmd.Stdout, m.cmd.Stderr, m.cmd.Env = console, console, []string{}
	cgroupDir, _ := vmmtest.NewCgroup(b)
	cgroup, err := os.Open(cgroupDir)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cgroup.Close() }()
	m.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true}
	if err := m.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(m.kill)
}

// connectAgent is a guest.Dialer by Firecracker's vsock.
func (m *handMachine) connectAgent(ctx context.Context) (net.Conn, error) {
	conn, err := linux.DialUnixIn(ctx, m.dir, "v.sock")
	if err != nil {
		return nil, err
	}
	reply := make([]byte, 0, 32)
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", wire.AgentPort)
	for one := make([]byte, 1); err == nil && len(reply) < cap(reply); {
		if _, err = io.ReadFull(conn, one); err == nil && one[0] == '\n' {
			break
		}
		reply = append(reply, one[0])
	}
	if err == nil && !bytes.HasPrefix(reply, []byte("OK ")) {
		err = fmt.Errorf("the VMM answers %q", reply)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}
