package firecracker

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest/wire"
	"banger/internal/hosttest"
)

// fakeSetup is what a fake program is: it is appended to a copy of the test's own, which
// plays it when its name says so, since in a jail there is nothing else to read.
type fakeSetup struct {
	Version string
	Spec    json.RawMessage   `json:",omitempty"` // the API's description (OpenAPI 3); none where the host lacks it
	Faults  map[string]string // by "PUT /path": what it is refused with
	Guest   string            // what its guest does: "" is an agent; see guest

	Unchecked bool // requests are not compared with the description, which takes its time
}

const fakeMark = "\n-- a fake Firecracker --\n"

func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	if name != "firecracker" && name != "jailer" {
		os.Exit(m.Run())
	}
	text, err := os.ReadFile(os.Args[0])
	if err == nil {
		var setup fakeSetup
		if err = json.Unmarshal(text[bytes.LastIndex(text, []byte(fakeMark))+len(fakeMark):], &setup); err == nil {
			err = setup.run(name, os.Args[1:])
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// static is the test's own program, once it is known.
var static struct {
	sync.Mutex
	text []byte
}

// staticTest returns the test's own program. One with a dynamic loader, as with the race
// detector, would lack that in a jail and is made anew.
func staticTest(t *testing.T) []byte {
	t.Helper()
	static.Lock()
	defer static.Unlock()
	if static.text != nil {
		return static.text
	}
	me, err := os.Executable()
	must(t, err)
	program, err := elf.Open(me)
	must(t, err)
	defer program.Close()
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		me = hosttest.BuildTests(t, "internal/vmm/firecracker")
	}
	static.text, err = os.ReadFile(me)
	must(t, err)
	return static.text
}

// fakes makes the two programs and returns the path of the first one.
func fakes(t *testing.T, setup fakeSetup) string {
	t.Helper()
	if setup.Version == "" {
		setup.Version = "1.16.1"
	}
	if !setup.Unchecked {
		setup.Spec = spec(t)
	}
	trailer, err := json.Marshal(setup)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = os.WriteFile(filepath.Join(dir, "firecracker"), slices.Concat(staticTest(t), []byte(fakeMark), trailer), 0o755)
	if err == nil {
		err = os.Link(filepath.Join(dir, "firecracker"), filepath.Join(dir, "jailer"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "firecracker")
}

func (s fakeSetup) run(name string, args []string) error {
	if slices.Contains(args, "--version") {
		fmt.Printf("%s v%s\n\n", strings.ToUpper(name[:1])+name[1:], s.Version)
		return nil
	}
	flags := map[string]string{}
	for len(args) > 0 && args[0] != "--" {
		if args[0] == "--enable-pci" || args[0] == "--show-level" {
			flags[args[0][2:]], args = "true", args[1:]
			continue
		}
		flags[strings.TrimPrefix(args[0], "--")], args = args[1], args[2:]
	}
	if name == "jailer" {
		return jail(flags, args[1:])
	}
	return s.serve(flags)
}

// jail does what the jailer does: src/jailer/src/env.rs, chroot.rs.
func jail(flags map[string]string, args []string) error {
	runtime.LockOSThread()
	uid, err := strconv.Atoi(flags["uid"])
	if err != nil {
		return err
	}
	program := filepath.Base(flags["exec-file"])
	root := filepath.Join(flags["chroot-base-dir"], program, flags["id"], "root")
	text, err := os.ReadFile(flags["exec-file"])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, program), text, 0o755); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") },
		func() error { return unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Chdir(root) },
		func() error { return unix.Mkdir("old_root", 0o600) },
		func() error { return unix.PivotRoot(".", "old_root") },
		func() error { return unix.Chdir("/") },
		func() error { return unix.Unmount("old_root", unix.MNT_DETACH) },
		func() error { return unix.Rmdir("old_root") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700), os.Chown(dir, uid, uid)); err != nil {
			return err
		}
	}
	for path, dev := range map[string]uint64{"/dev/net/tun": unix.Mkdev(10, 200), "/dev/kvm": unix.Mkdev(10, 232), "/dev/urandom": unix.Mkdev(1, 9)} {
		if err := errors.Join(unix.Mknod(path, unix.S_IFCHR|0o600, int(dev)), os.Chown(path, uid, uid)); err != nil {
			return err
		}
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return syscall.Exec("/"+program, append([]string{"/" + program, "--id", flags["id"]}, args...), nil)
}

// fakeVMM is a Firecracker that boots nothing, but keeps the rules of the real one.
type fakeVMM struct {
	fakeSetup
	pci   bool
	check *checker // nil without a description
	late  atomic.Bool

	mu      sync.Mutex
	started bool
	paused  bool
	boot    []string // what was configured for a boot
	vsock   string
	kernel  string
	devices int
	files   []*os.File
}

func (s fakeSetup) serve(flags map[string]string) error {
	f := &fakeVMM{fakeSetup: s, pci: flags["enable-pci"] != ""}
	if len(s.Spec) > 0 {
		var err error
		if f.check, err = newChecker(s.Spec); err != nil {
			return err
		}
	}
	for _, name := range []string{"log-path", "metrics-path"} {
		if err := f.open(flags[name], os.O_RDWR, name); err != nil {
			return err
		}
	}
	l, err := net.Listen("unix", flags["api-sock"])
	if err != nil {
		return err
	}
	return http.Serve(l, f)
}

func (f *fakeVMM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var answer any
	status := http.StatusNoContent
	if err == nil && f.check != nil {
		err = f.check.request(r, body)
	}
	if err == nil {
		answer, err = f.answer(r.Method+" "+r.URL.Path, r.URL.Path, body)
	}
	var text []byte
	if err != nil {
		status, answer = http.StatusBadRequest, map[string]string{"fault_message": err.Error()}
	} else if answer != nil {
		status = http.StatusOK
	}
	if answer != nil {
		text, _ = json.Marshal(answer)
		w.Header().Set("Content-Type", "application/json")
	}
	if f.check != nil {
		if err := f.check.response(r, body, status, w.Header(), text); err != nil {
			status, text = http.StatusInternalServerError, fmt.Appendf(nil, `{"fault_message": %q}`, "the fake gives a wrong answer: "+err.Error())
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(text)
	if err != nil && strings.HasPrefix(err.Error(), "Load snapshot error") {
		_ = http.NewResponseController(w).Flush()
		time.AfterFunc(20*time.Millisecond, func() { os.Exit(1) })
	}
}

// The words of Firecracker 1.16.1.
var (
	errStarted    = &fault{"The requested operation is not supported after starting the microVM."}
	errNotStarted = &fault{"The requested operation is not supported before starting the microVM."}
)

// answer does what a request asks for.
func (f *fakeVMM) answer(what, path string, body []byte) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if message := f.Faults[what]; message != "" {
		return nil, errors.New(message)
	}
	field := func(name string) string {
		var fields map[string]any
		_ = json.Unmarshal(body, &fields)
		text, _ := fields[name].(string)
		return text
	}
	switch {
	case what == "GET /version":
		return map[string]string{"firecracker_version": f.Version}, nil
	case what == "GET /":
		state := map[bool]string{true: "Running"}[f.started]
		if f.paused {
			state = "Paused"
		} else if !f.started {
			state = "Not started"
		}
		return map[string]string{"app_name": "Firecracker", "id": "x", "state": state, "vmm_version": f.Version}, nil
	case what == "PUT /snapshot/load":
		return nil, f.load(body)
	case what == "PUT /snapshot/create":
		return nil, f.save(field("snapshot_path"), field("mem_file_path"))
	case what == "PATCH /vm":
		if !f.started {
			return nil, errNotStarted
		}
		f.paused = field("state") == "Paused"
		return nil, nil
	case strings.HasPrefix(what, "PATCH /drives/"):
		if !f.started {
			return nil, errNotStarted
		}
		return nil, f.open(field("path_on_host"), os.O_RDONLY, "Drive config error")
	case what == "PUT /actions":
		return nil, f.act(field("action_type"))
	case f.started:
		return nil, errStarted
	}
	return nil, f.configure(what, path, body, field)
}

// configure takes up a part of a machine that is to boot.
func (f *fakeVMM) configure(what, path string, body []byte, field func(string) string) error {
	if what != "PUT /serial" {
		f.boot = append(f.boot, path)
	}
	kind := strings.Split(strings.TrimPrefix(path, "/"), "/")[0]
	if slices.Contains([]string{"drives", "network-interfaces", "vsock", "entropy", "balloon"}, kind) {
		f.devices++
	}
	switch kind {
	case "boot-source":
		f.kernel = field("kernel_image_path")
		if !strings.Contains(field("boot_args"), wire.VsockWord) {
			return errors.New("the guest does not hear of vsock")
		}
		if err := f.open(field("initrd_path"), os.O_RDONLY, "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions"); err != nil {
			return err
		}
		return f.open(f.kernel, os.O_RDONLY, "Boot source error: The kernel file cannot be opened")
	case "drives":
		flag := os.O_RDWR
		if bytes.Contains(body, []byte(`"is_read_only":true`)) {
			flag = os.O_RDONLY
		}
		return f.open(field("path_on_host"), flag, "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file")
	case "network-interfaces":
		return openTap(field("host_dev_name"))
	case "vsock":
		return f.listen(field("uds_path"))
	}
	return nil
}

func (f *fakeVMM) open(path string, flag int, what string) error {
	file, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	f.files = append(f.files, file)
	return nil
}

func openTap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		var request *unix.Ifreq
		if request, err = unix.NewIfreq(name); err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
	}
	if err != nil {
		return fmt.Errorf("Network config error: Open tap device failed: %w", err)
	}
	return nil
}

func (f *fakeVMM) act(action string) error {
	switch {
	case action == "InstanceStart" && f.started:
		return errStarted
	case action == "InstanceStart":
		room := 17
		if f.pci {
			room = 31
		}
		if f.devices > room {
			return errors.New("Start microvm error: Cannot register the MMIO device: no free interrupts")
		}
		f.started = true
		fmt.Print("a guest boots\n")
		return f.guest()
	case !f.started:
		return errNotStarted
	case action == "SendCtrlAltDel":
		fmt.Print("[    9.000000] reboot: Power down\n") // and the CPUs stand still
	}
	return nil
}

func (f *fakeVMM) save(state, memory string) error {
	if !f.started {
		return errNotStarted
	}
	if !f.paused {
		return errors.New("Create snapshot error: Cannot save the microVM state: Operation not allowed: Vcpu is in an invalid state")
	}
	saved, _ := json.Marshal(map[string]string{"vsock": f.vsock})
	for path, content := range map[string][]byte{state: saved, memory: make([]byte, fakeMemory)} {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err == nil {
			_, err = file.Write(content)
			err = errors.Join(err, file.Close())
		}
		if err != nil {
			return fmt.Errorf("Create snapshot error: %w", err)
		}
	}
	return nil
}

func (f *fakeVMM) load(body []byte) error {
	if f.started {
		return errStarted
	}
	if len(f.boot) > 0 {
		return errors.New("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	var b snapshotLoad
	_ = json.Unmarshal(body, &b)
	text, err := os.ReadFile(b.State)
	var saved struct{ Vsock string }
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	if err == nil {
		_, err = os.Stat(b.Memory.Path)
	}
	if err == nil && b.Vsock != nil {
		saved.Vsock = b.Vsock.Path
	}
	for _, n := range b.Networks {
		if err == nil {
			err = openTap(n.Tap)
		}
	}
	if err == nil {
		err = f.listen(saved.Vsock)
	}
	if err != nil {
		return fmt.Errorf("Load snapshot error: Failed to restore from snapshot: %w", err)
	}
	f.started, f.paused = true, true
	return nil
}

// fakeMemory is how much memory the machines of the tests have, in bytes.
const fakeMemory = 128 << 20

// ctxOf is a test's context with a bound.
func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
