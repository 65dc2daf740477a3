package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

const (
	// keepAlive is how often a silent stream says that it is there.
	keepAlive = 15 * time.Second
	// writeTimeout is how long a reader of events may keep us from writing one.
	writeTimeout = 30 * time.Second
)

// streamRoutes registers the routes that are not JSON and describes them.
func (s *server) streamRoutes(mux *http.ServeMux, doc *huma.OpenAPI) {
	for _, r := range []struct {
		method, path, id, summary string
		status                    int
		contentType               string // of the answer
		handle                    http.HandlerFunc
	}{
		{"GET", "/operations/{id}/events", "follow-operation",
			`Server-sent events: "progress" with a Progress, at the end "done" with the Operation.`, 200, "text/event-stream", s.events},
		{"GET", "/vms/{vm}/logs", "vm-logs", "What the console printed.", 200, "text/plain", s.logs},
		{"GET", "/vms/{vm}/lease", "lease-vm", "Hold a lease on the VM as long as the answer is being read.", 200, "text/event-stream", s.lease},
		{"GET", "/vms/{vm}/exec", "exec", "WebSocket: run a command in the VM.", 101, "", s.exec},
		{"GET", "/vms/{vm}/ssh", "ssh", "A raw stream to the VM's ssh server: ask for it with Upgrade: " + api.UpgradeStream + ".", 101, "", s.ssh},
		{"PUT", "/images/{name}", "import-image", "Make an image from the body, a tar archive: plain, gzip, zstd or xz.", 201, "application/json", s.importImage},
		{"PUT", "/kernels/{name}", "import-kernel", "Make a kernel from the body, a .deb package. Root only.", 201, "application/json", s.importKernel},
	} {
		mux.HandleFunc(r.method+" "+prefix+r.path, r.handle)
		doc.AddOperation(describe(r.method, prefix+r.path, r.id, r.summary, r.status, r.contentType))
	}
}

func describe(method, path, id, summary string, status int, contentType string) *huma.Operation {
	resp := &huma.Response{Description: http.StatusText(status)}
	if contentType != "" {
		resp.Content = map[string]*huma.MediaType{contentType: {}}
	}
	op := &huma.Operation{Method: method, Path: path, OperationID: id, Summary: summary,
		Responses: map[string]*huma.Response{fmt.Sprint(status): resp}}
	if _, rest, ok := strings.Cut(path, "{"); ok {
		name, _, _ := strings.Cut(rest, "}")
		op.Parameters = []*huma.Param{{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}}
	}
	if method == http.MethodPut {
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/octet-stream": {}}}
	}
	return op
}

// eventStream writes server-sent events (WHATWG HTML, 9.2).
type eventStream struct {
	w  io.Writer
	rc *http.ResponseController
}

func newEventStream(w http.ResponseWriter) (*eventStream, error) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	e := &eventStream{w, http.NewResponseController(w)}
	return e, e.rc.Flush()
}

func (e *eventStream) write(text string) error {
	if err := e.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(e.w, text); err != nil {
		return err
	}
	return e.rc.Flush()
}

func (e *eventStream) comment() error { return e.write(": alive\n\n") }

func (e *eventStream) event(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.write("event: " + name + "\ndata: " + string(b) + "\n\n")
}

func (s *server) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	id := r.PathValue("id")
	if _, err := s.visible(caller(ctx), id); err != nil {
		s.fail(w, err)
		return
	}
	progress, err := s.Operations.Follow(ctx, id)
	if err != nil {
		s.fail(w, err)
		return
	}
	out, err := newEventStream(w)
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for err == nil {
		select {
		case p, more := <-progress:
			if more {
				err = out.event("progress", p)
				continue
			}
			// At the end of the operation, unless the stream ended before it.
			if op, ok := s.Operations.Get(id); ok && op.Finished != nil {
				_ = out.event("done", op)
			}
			return
		case <-alive.C:
			err = out.comment()
		}
	}
}

func (s *server) lease(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	release, err := s.VMs.Lease(ctx, caller(ctx), r.PathValue("vm"))
	if err != nil {
		s.fail(w, err)
		return
	}
	defer release()
	out, err := newEventStream(w)
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case <-alive.C:
			err = out.comment()
		}
	}
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	log, err := s.VMs.Logs(ctx, caller(ctx), r.PathValue("vm"))
	if err != nil {
		s.fail(w, err)
		return
	}
	defer log.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := io.Copy(w, log); err != nil && ctx.Err() == nil {
		panic(http.ErrAbortHandler) // the reader must not take it for the whole
	}
}

// exec connects the caller with the agent's own WebSocket, ssh with its ssh server.
func (s *server) exec(w http.ResponseWriter, r *http.Request) { s.proxy(w, r, "exec in", "/exec") }
func (s *server) ssh(w http.ResponseWriter, r *http.Request)  { s.proxy(w, r, "ssh to", "/ssh") }

// proxy connects the caller with a route of the agent that switches protocols.
func (s *server) proxy(w http.ResponseWriter, r *http.Request, what, path string) {
	ctx, cancel := streaming(r)
	defer cancel()
	ref := r.PathValue("vm")
	agent, err := s.VMs.Agent(ctx, caller(ctx), ref)
	if err != nil {
		s.fail(w, err)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = &url.URL{Scheme: "http", Host: "agent", Path: path}, "agent"
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode == http.StatusSwitchingProtocols || path == "/exec" {
				return nil
			}
			return api.Errorf(api.CodeGuest, "%s VM %s: the agent answers %d", what, ref, resp.StatusCode).
				WithHint("an agent of an older version is replaced by a restart: banger vm stop %s, banger vm start %s", ref, ref)
		},
		Transport:     agent,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if _, known := errors.AsType[*api.Error](err); !known {
				err = api.Errorf(api.CodeGuest, "%s VM %s: the agent does not answer: %w", what, ref, err).
					WithHint("banger vm logs %s", ref)
			}
			s.fail(w, err)
		},
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

func (s *server) importImage(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	img, err := s.Images.Import(ctx, caller(ctx), r.PathValue("name"), r.Body, func(api.Progress) {})
	s.created(w, imageOut(img), err)
}

func (s *server) importKernel(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	name := r.PathValue("name")
	if err := onlyRoot(caller(ctx), "import kernel "+name); err != nil {
		s.fail(w, err)
		return
	}
	k, err := s.Kernels.Import(ctx, name, r.Body, func(api.Progress) {})
	s.created(w, kernelOut(k), err)
}

func (s *server) created(w http.ResponseWriter, v any, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone
}

// streaming is r's context for a handler that may take as long as it likes: it
// ends with the daemon too, not only with the request.
func streaming(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := stopping(ctx)
	if stop == nil {
		return ctx, cancel
	}
	forget := context.AfterFunc(stop, cancel)
	return ctx, func() { forget(); cancel() }
}
