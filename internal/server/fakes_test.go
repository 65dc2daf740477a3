package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"banger/api"
	"banger/client"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/operation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vms knows one VM, "one" of user 1000, and notes what it was asked.
type vms struct {
	ops    *operation.Registry
	err    error // what every call answers with, if set
	agent  http.RoundTripper
	leased chan bool // true when a lease began, false when it ended

	mu    sync.Mutex
	asked string
}

func (v *vms) note(what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = what
}

func (v *vms) find(caller uint32, ref string) (api.VM, error) {
	switch {
	case v.err != nil:
		return api.VM{}, v.err
	case ref == "panic":
		panic("ouch")
	case ref != "one" || caller != 0 && caller != 1000:
		return api.VM{}, api.Errorf(api.CodeNotFound, "VM %q: no such VM", ref).WithHint("banger vm list")
	}
	return api.VM{ID: "1", Name: "one", Owner: 1000}, nil
}

func (v *vms) begin(caller uint32, ref, what string) (api.Operation, error) {
	if _, err := v.find(caller, ref); err != nil {
		return api.Operation{}, err
	}
	v.note(what)
	return v.ops.Start(caller, what, ref, func(context.Context, api.Reporter) error { return nil }), nil
}

func (v *vms) Create(_ context.Context, caller uint32, req api.CreateVM) (api.VM, api.Operation, error) {
	op, err := v.begin(caller, "one", "create "+req.Name)
	return api.VM{Name: req.Name, Owner: caller}, op, err
}

func (v *vms) List(_ context.Context, caller uint32) ([]api.VM, error) {
	vm, err := v.find(caller, "one")
	return []api.VM{vm}, err
}

func (v *vms) Get(_ context.Context, caller uint32, ref string) (api.VM, error) {
	return v.find(caller, ref)
}

func (v *vms) Pause(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "pause")
}

func (v *vms) Resume(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "resume")
}

func (v *vms) Suspend(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "suspend")
}

func (v *vms) ColdStart(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "start cold")
}

func (v *vms) Start(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "start")
}

func (v *vms) Stop(_ context.Context, caller uint32, ref string, timeout time.Duration, reason string) (api.Operation, error) {
	return v.begin(caller, ref, "stop "+timeout.String()+" "+reason)
}

func (v *vms) Kill(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "kill")
}

func (v *vms) Delete(_ context.Context, caller uint32, ref string, force bool) (api.Operation, error) {
	if force {
		return v.begin(caller, ref, "delete by force")
	}
	return v.begin(caller, ref, "delete")
}

func (v *vms) Set(_ context.Context, caller uint32, ref string, _ api.SetVM) (api.Operation, error) {
	return v.begin(caller, ref, "set")
}

func (v *vms) Restart(_ context.Context, caller uint32, ref string, timeout time.Duration) (api.Operation, error) {
	return v.begin(caller, ref, "restart "+timeout.String())
}

func (v *vms) Reset(_ context.Context, caller uint32, ref string) (api.Operation, error) {
	return v.begin(caller, ref, "reset")
}

func (v *vms) Promote(_ context.Context, caller uint32, ref, image string) (api.Operation, error) {
	return v.begin(caller, ref, "promote to "+image)
}

func (v *vms) Logs(_ context.Context, caller uint32, ref string, _ api.ReadLogs) (io.ReadCloser, error) {
	_, err := v.find(caller, ref)
	return io.NopCloser(strings.NewReader("booted\n")), err
}

func (v *vms) Lease(_ context.Context, caller uint32, ref string) (func(), error) {
	if _, err := v.find(caller, ref); err != nil {
		return nil, err
	}
	v.leased <- true
	return func() { v.leased <- false }, nil
}

func (v *vms) Stat(_ context.Context, caller uint32, ref, path string, _ bool) (api.File, error) {
	_, err := v.find(caller, ref)
	return api.File{Path: path, Kind: api.FileRegular}, err
}

// ReadFiles sends the path instead of an archive, and breaks off as the path says.
func (v *vms) ReadFiles(_ context.Context, caller uint32, ref string, q api.ReadFiles) (io.ReadCloser, error) {
	if _, err := v.find(caller, ref); err != nil {
		return nil, err
	}
	end := map[string]error{"/changed": api.Errorf(api.CodeConflict, "read /changed: it became shorter"), "/broken": io.ErrUnexpectedEOF}[q.Path]
	if end == nil {
		end = io.EOF
	}
	return io.NopCloser(io.MultiReader(strings.NewReader(q.Path), iotest.ErrReader(end))), nil
}

func (v *vms) WriteFiles(_ context.Context, caller uint32, ref string, q api.WriteFiles, r io.Reader) error {
	if _, err := v.find(caller, ref); err != nil {
		return err
	}
	text, err := io.ReadAll(r)
	v.note("write " + q.Path + " " + q.Name + " " + string(text))
	return err
}

func (v *vms) Stats(_ context.Context, caller uint32, ref string) (api.Stats, error) {
	vm, err := v.find(caller, ref)
	return api.Stats{VM: vm.ID, Name: vm.Name, GuestError: "it hangs", Host: api.HostStats{Memory: 1}}, err
}

func (v *vms) Ports(_ context.Context, caller uint32, ref string) ([]api.Port, error) {
	_, err := v.find(caller, ref)
	return []api.Port{{Protocol: "tcp", Address: "::", Port: 22}}, err
}

func (v *vms) Agent(_ context.Context, caller uint32, ref string) (http.RoundTripper, error) {
	_, err := v.find(caller, ref)
	return v.agent, err
}

func (*vms) Lend(context.Context, uint32, string) {}

func (v *vms) AuthorizeSSH(_ context.Context, caller uint32, ref, key string) (api.SSHAccess, error) {
	vm, err := v.find(caller, ref)
	v.note("authorize " + key)
	return api.SSHAccess{VM: vm.ID, Name: vm.Name, HostPublicKey: "ssh-ed25519 AAAA"}, err
}

type images struct{}

func (images) Import(_ context.Context, owner uint32, name string, r io.Reader, _ api.Reporter) (image.Image, error) {
	if name == "refused" { // before the body is read
		return image.Image{}, api.Errorf(api.CodeAlreadyExists, "import image %s: the name is taken", name)
	}
	if name == "bad" { // seen when much of it has been read
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		return image.Image{}, api.Errorf(api.CodeInvalid, "import image %s: not an archive", name)
	}
	if name == "early" { // whose archive ends before the body does
		n, err := io.CopyN(io.Discard, r, 1000)
		return image.Image{Name: name, Owner: owner, Layers: []image.Layer{{Digest: "sha256:0", Size: n}}}, err
	}
	n, err := io.Copy(io.Discard, r)
	return image.Image{Name: name, Owner: owner, Layers: []image.Layer{{Digest: "sha256:0", Size: n}}}, err
}
func (i images) Replace(ctx context.Context, owner uint32, name string, r io.Reader, report api.Reporter) (image.Image, error) {
	return i.Import(ctx, owner, name, r, report)
}
func (images) List(context.Context, uint32) ([]image.Image, error) { return nil, nil }
func (images) Get(_ context.Context, _ uint32, name string) (image.Image, error) {
	return image.Image{Name: name}, nil
}
func (images) Tag(_ context.Context, caller uint32, _, as string) (image.Image, error) {
	return image.Image{Name: as, Owner: caller}, nil
}
func (images) Export(context.Context, uint32, string) (*image.Export, error) {
	return &image.Export{}, nil
}
func (images) Remove(context.Context, uint32, string) error { return nil }

type kernels struct{}

func (kernels) Pull(_ context.Context, report api.Reporter) (kernel.Kernel, error) {
	report(api.Progress{Step: "download"})
	return kernel.Kernel{}, api.Errorf(api.CodeUnavailable, "pull kernel: no network")
}
func (kernels) Import(_ context.Context, name string, r io.Reader, _ api.Reporter) (kernel.Kernel, error) {
	n, err := io.Copy(io.Discard, r)
	return kernel.Kernel{Name: name, Size: n}, err
}
func (kernels) List(context.Context) ([]kernel.Kernel, error) {
	return []kernel.Kernel{{Name: "k", Default: true}}, nil
}
func (kernels) Get(_ context.Context, name string) (kernel.Kernel, error) {
	return kernel.Kernel{Name: name}, nil
}
func (kernels) SetDefault(_ context.Context, name string) (kernel.Kernel, error) {
	return kernel.Kernel{Name: name, Default: true}, nil
}
func (kernels) Offered(context.Context) (api.KernelOffer, error) {
	return api.KernelOffer{Package: "linux"}, nil
}
func (images) Pull(_ context.Context, uid uint32, req api.PullImage, _ api.Reporter) (image.Image, error) {
	return image.Image{Name: req.Ref, Owner: uid}, nil
}
func (kernels) Remove(context.Context, string) error { return errors.New("disk on fire") }

type doctors struct{}

func (doctors) Examine(context.Context, uint32) api.Diagnosis {
	return api.Diagnosis{Findings: []api.Finding{{Message: "well"}}}
}
func (d doctors) Repair(ctx context.Context, caller uint32) api.Diagnosis {
	return d.Examine(ctx, caller)
}

type disks struct{}

func (disks) DiskUsage(_ context.Context, caller uint32) (api.DiskUsage, error) {
	return api.DiskUsage{Total: int64(caller)}, nil
}

func (disks) Prune(_ context.Context, caller uint32, req api.Prune) (api.Pruned, error) {
	if req.Lost && caller != 0 {
		return api.Pruned{}, api.Errorf(api.CodePermissionDenied, "prune: no")
	}
	return api.Pruned{Items: []api.PrunedItem{{Kind: "cache", Name: "c", Error: &api.Error{Code: api.CodeInternal, Message: "disk on fire"}}}}, nil
}

func (disks) PruneImages(context.Context, uint32, api.PruneImages) (api.Pruned, error) {
	return api.Pruned{Items: []api.PrunedItem{{Kind: "image", Name: "i"}}}, nil
}

// daemon is a server on a socket, which callers reach as the user uid.
type daemon struct {
	*client.Client
	vms      *vms
	socket   string
	uid      uint32
	shutdown chan struct{}
	handler  http.Handler
}

func newDaemon(t *testing.T, uid uint32) *daemon {
	t.Helper()
	d := &daemon{uid: uid, shutdown: make(chan struct{}, 1), socket: filepath.Join(t.TempDir(), "sock")}
	ops := operation.NewRegistry()
	t.Cleanup(func() {
		if err := ops.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	d.vms = &vms{ops: ops, leased: make(chan bool, 2)}
	d.handler = New(Config{VMs: d.vms, Images: images{}, Kernels: kernels{}, Usage: disks{}, Doctor: doctors{}, Operations: ops,
		System:   func() api.System { return api.System{Version: "test"} },
		Shutdown: func() { d.shutdown <- struct{}{} },
		Log:      slog.New(slog.DiscardHandler)})
	d.Client = client.New(d.socket)
	return d
}

// serve starts serving; stop ends it and may be called twice.
func (d *daemon) serve(t *testing.T) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	// The real peer is whoever runs the test; what follows from the uid is tested by
	// replacing it.
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, d.uid)))
	})
	go func() { served <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func started(t *testing.T, uid uint32) *daemon {
	t.Helper()
	d := newDaemon(t, uid)
	d.serve(t)
	return d
}
