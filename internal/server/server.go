// Package server is the daemon's HTTP interface on its Unix socket: it finds out
// who calls, decodes the request, makes one call of a service, and encodes the
// answer. What the requests do is the business of the packages vm, image, kernel
// and operation; the types that travel are those of package api.
//
// The JSON routes are registered with huma, which checks requests and describes
// them in /v1/openapi.json; the streams (events, logs, leases, exec, uploads) are
// handlers of net/http, in stream.go. Use New for the handler and Serve to serve it.
package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/operation"
)

// VMs is what the server needs of package vm. A caller is a uid; 0 sees all VMs,
// others theirs.
type VMs interface {
	Create(ctx context.Context, caller uint32, req api.CreateVM) (api.VM, api.Operation, error)
	List(ctx context.Context, caller uint32) ([]api.VM, error)
	Get(ctx context.Context, caller uint32, ref string) (api.VM, error)
	Start(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	ColdStart(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	Pause(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	Resume(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	Suspend(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	Stop(ctx context.Context, caller uint32, ref string, timeout time.Duration, reason string) (api.Operation, error)
	Kill(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	Delete(ctx context.Context, caller uint32, ref string, force bool) (api.Operation, error)
	Set(ctx context.Context, caller uint32, ref string, req api.SetVM) (api.Operation, error)
	Restart(ctx context.Context, caller uint32, ref string, timeout time.Duration) (api.Operation, error)
	Reset(ctx context.Context, caller uint32, ref string) (api.Operation, error)
	Promote(ctx context.Context, caller uint32, ref, image string) (api.Operation, error)
	Logs(ctx context.Context, caller uint32, ref string, q api.ReadLogs) (io.ReadCloser, error)
	Lease(ctx context.Context, caller uint32, ref string) (release func(), err error)
	Agent(ctx context.Context, caller uint32, ref string) (http.RoundTripper, error)
	Lend(ctx context.Context, caller uint32, ref string)
	Stat(ctx context.Context, caller uint32, ref, path string, follow bool) (api.File, error)
	ReadFiles(ctx context.Context, caller uint32, ref string, q api.ReadFiles) (io.ReadCloser, error)
	WriteFiles(ctx context.Context, caller uint32, ref string, q api.WriteFiles, r io.Reader) error
	Stats(ctx context.Context, caller uint32, ref string) (api.Stats, error)
	Ports(ctx context.Context, caller uint32, ref string) ([]api.Port, error)
	AuthorizeSSH(ctx context.Context, caller uint32, ref, publicKey string) (api.SSHAccess, error)
}

// Images is what the server needs of package image.
type Images interface {
	Import(ctx context.Context, owner uint32, name string, r io.Reader, report api.Reporter) (image.Image, error)
	Replace(ctx context.Context, owner uint32, name string, r io.Reader, report api.Reporter) (image.Image, error)
	Pull(ctx context.Context, owner uint32, req api.PullImage, report api.Reporter) (image.Image, error)
	List(ctx context.Context, caller uint32) ([]image.Image, error)
	Get(ctx context.Context, caller uint32, name string) (image.Image, error)
	Tag(ctx context.Context, caller uint32, name, as string) (image.Image, error)
	Export(ctx context.Context, caller uint32, name string) (*image.Export, error)
	Remove(ctx context.Context, caller uint32, name string) error
}

// Kernels is what the server needs of package kernel. Kernels belong to nobody:
// all may use them, and the server lets only root change them otherwise than by
// a pull.
type Kernels interface {
	Pull(ctx context.Context, report api.Reporter) (kernel.Kernel, error)
	Import(ctx context.Context, name string, r io.Reader, report api.Reporter) (kernel.Kernel, error)
	List(ctx context.Context) ([]kernel.Kernel, error)
	Get(ctx context.Context, name string) (kernel.Kernel, error)
	SetDefault(ctx context.Context, name string) (kernel.Kernel, error)
	Offered(ctx context.Context) (api.KernelOffer, error)
	Remove(ctx context.Context, name string) error
}

// Usage is what the server needs of package usage.
type Usage interface {
	DiskUsage(ctx context.Context, caller uint32) (api.DiskUsage, error)
	Prune(ctx context.Context, caller uint32, req api.Prune) (api.Pruned, error)
	PruneImages(ctx context.Context, caller uint32, req api.PruneImages) (api.Pruned, error)
}

// Doctor is what the server needs of package doctor.
type Doctor interface {
	Examine(ctx context.Context, caller uint32) api.Diagnosis
	Repair(ctx context.Context, caller uint32) api.Diagnosis
}

// Config is what the handler is made of; every field is needed.
type Config struct {
	VMs        VMs
	Images     Images
	Kernels    Kernels
	Usage      Usage
	Doctor     Doctor
	Operations *operation.Registry
	System     func() api.System
	Shutdown   func() // asks the daemon to end; must not wait for it
	Log        *slog.Logger
}

type server struct{ Config }

// New returns the handler of all routes. Serve must serve it, or another server
// that has ConnContext as its http.Server.ConnContext: requests that come
// without the credentials of their peer are refused.
func New(c Config) http.Handler {
	s := &server{c}
	mux := http.NewServeMux()
	s.register(mux)
	mux.HandleFunc("/", s.noRoute(mux))
	return s.guard(mux)
}

// register registers all routes and returns the document of them.
func (s *server) register(mux humago.Mux) *huma.OpenAPI {
	adaptHuma()
	routes := humago.New(mux, newDocument())
	s.systemRoutes(routes)
	s.usageRoutes(routes)
	s.doctorRoutes(routes)
	s.vmRoutes(routes)
	s.sshRoutes(routes)
	s.guestRoutes(routes)
	s.standstillRoutes(routes)
	s.changeRoutes(routes)
	s.operationRoutes(routes)
	s.imageRoutes(routes)
	s.kernelRoutes(routes)
	s.streamRoutes(mux, routes.OpenAPI())
	return routes.OpenAPI()
}

// noRoute answers where no route does.
func (s *server) noRoute(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var takes []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			if _, pattern := mux.Handler(&http.Request{Method: method, URL: r.URL, Host: r.Host}); pattern != "/" {
				takes = append(takes, method)
			}
		}
		s.noSuchRoute(w, r, takes...)
	}
}

// noSuchRoute says that there is none, and with which methods there would be.
func (s *server) noSuchRoute(w http.ResponseWriter, r *http.Request, takes ...string) {
	err := api.Errorf(api.CodeNotFound, "%s %s: no such route", r.Method, r.URL.Path).
		WithHint("client and daemon may be of different versions")
	if len(takes) > 0 {
		w.Header().Set("Allow", strings.Join(takes, ", "))
		err = err.WithHint("it takes %s", strings.Join(takes, ", "))
	}
	s.fail(w, err)
}

// routable tells whether http.ServeMux should see r: it answers in its own words
// to the request target *, to HEAD where there is GET, and to paths with empty or
// dotted elements, which it redirects.
func routable(r *http.Request) bool {
	p := r.URL.EscapedPath()
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && r.Method != http.MethodHead && r.Method != http.MethodConnect
}

const prefix = "/" + api.Version

// guard stands before every route: it refuses who may not ask at all, logs, and
// makes a panic an answer.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w := &recorder{ResponseWriter: rw}
		uid, known := peer(r.Context())
		defer func() {
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler { // net/http's own way to break a connection
					panic(v)
				}
				s.Log.Error("panic in request", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
				if w.status != 0 { // too late for an answer
					panic(http.ErrAbortHandler)
				}
				s.fail(w, api.Errorf(api.CodeInternal, "%s %s: panic: %v", r.Method, r.URL.Path, v).
					WithHint("the daemon's log has the details"))
			}
			s.Log.Debug("request", "method", r.Method, "path", r.URL.Path, "uid", uid, "status", w.status, "took", time.Since(began))
		}()
		switch {
		case !known:
			s.fail(w, api.Errorf(api.CodePermissionDenied, "%s %s: the caller is unknown", r.Method, r.URL.Path))
		case len(r.Header.Values("Origin")) > 0:
			s.fail(w, api.Errorf(api.CodePermissionDenied, "%s %s: requests of browsers are refused", r.Method, r.URL.Path))
		case !routable(r):
			s.noSuchRoute(w, r)
		default:
			// A body may be refused before its end: see drain.
			_ = http.NewResponseController(w).EnableFullDuplex()
			body := r.Body
			if body != http.NoBody {
				r.Body = io.NopCloser(body) // huma closes it
			}
			next.ServeHTTP(w, r)
			switch {
			case body == http.NoBody:
			case w.status >= 400:
				drain(w, body)
			default:
				readRest(w, body)
			}
		}
	})
}

// drainTime is how long a caller that was refused may go on sending.
const drainTime = 3 * time.Second

// drain sends what was answered and then reads what the caller still sends, for
// some time: one whose connection is closed while it sends does not read why.
func drain(w http.ResponseWriter, body io.Reader) {
	rc := http.NewResponseController(w)
	if rc.Flush() == nil && rc.SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.Copy(io.Discard, body)
	}
}

// maxRest is how much may come behind the end of an archive, in bytes: tar(1) pads it.
const maxRest = 1 << 20

// readRest reads what a caller sends behind that which was needed, before the answer:
// one whose connection is closed while it sends takes it for a failure.
func readRest(w http.ResponseWriter, body io.Reader) {
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.CopyN(io.Discard, body, maxRest)
	}
}

// recorder remembers the status, 0 as long as none was sent.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush, hijack and set deadlines.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
