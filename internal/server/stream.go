package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
)

const (
	// keepAlive is how often a silent stream says that it is there.
	keepAlive = 15 * time.Second
	upload    = "application/octet-stream"
	// writeTimeout is how long a reader of events may keep us from writing one.
	writeTimeout = 30 * time.Second
	// uploadPause is how long an upload may stand still: whatever makes an archive
	// on the other side may have to think, or to download.
	uploadPause = 10 * time.Minute
)

// stream is a route that is not JSON on both sides.
type stream struct {
	spec
	answers string // media type of the answer; empty for a protocol that is switched to
	example any    // of an answer, or of an event of it, for the schema; nil for plain bytes
	takes   string // media type of the request's body; empty where there is none
	handle  http.HandlerFunc
}

// streamRoutes registers the routes that are not JSON and describes them.
func (s *server) streamRoutes(mux humago.Mux, doc *huma.OpenAPI) {
	const events, text, json = "text/event-stream", "text/plain", "application/json"
	for _, r := range append(s.fileStreams(), []stream{
		{spec{"GET /operations/{id}/events", 200, "follow-operation", "Follow an operation to its end.",
			"Server-sent events (WHATWG HTML, 9.2). Each event \"progress\" has a Progress in JSON as its data; the last event, \"done\", has the Operation. " +
				"A comment comes every 15 seconds in between. A stream that ends without \"done\" was broken: ask again.",
			[]api.Code{api.CodeNotFound}}, events, operationEvent{}, "", s.events},
		{spec{"GET /vms/{vm}/logs", 200, "vm-logs", "Read what the VM's console printed.",
			"The bytes are the guest's, as it printed them. At most some MiB of them are kept, the newest. " +
				"With follow, the answer ends when the VM is deleted; what is printed so fast that it is dropped before it could be sent is left out.",
			slices.Concat(ofVM, []api.Code{api.CodeConflict})}, text, nil, "", s.logs},
		{spec{"GET /vms/{vm}/lease", 200, "lease-vm", "Hold a lease on a VM.",
			"The lease begins with the answer and ends when the caller closes the connection. The answer never ends by itself: it is a stream of " +
				"server-sent events that consists of comments, one every 15 seconds. An ephemeral VM is deleted a few seconds after its last lease has ended.",
			ofVM}, events, noEvent{}, "", s.lease},
		{spec{"GET /vms/{vm}/exec", 101, "exec", "Run a command in a VM.",
			"A WebSocket (RFC 6455) of binary messages, each a frame: one byte with its type, eight with its number (big endian), then its data. " +
				"The caller's first frame, type 1, says in JSON what to run; output and, as the last, the exit status come in numbered frames that the caller " +
				"acknowledges. One whose connection broke attaches to the session again and loses nothing. The Go package banger/api names the frames, " +
				"banger/client has the caller's end.",
			slices.Concat(ofVM, []api.Code{api.CodeConflict, api.CodeGuest})}, "", nil, "", s.exec},
		{spec{"GET /vms/{vm}/ssh", 101, "ssh", "Connect to a VM's ssh server.",
			"The answer switches to the protocol " + api.UpgradeStream + ", which the request has to name in its header Upgrade: from there on the connection " +
				"carries the bytes of ssh, both ways.",
			slices.Concat(ofVM, []api.Code{api.CodeConflict, api.CodeGuest})}, "", nil, "", s.ssh},
		{spec{"PUT /images/{name}", 201, "import-image", "Make an image of a tar archive.",
			"The body is a tar archive of a root file system, plain or compressed with gzip, zstd or xz; it may be sent in chunks. The image belongs to the caller.",
			[]api.Code{api.CodeInvalid, api.CodeAlreadyExists, api.CodeUnavailable, api.CodeNoSpace}}, json, api.Image{}, upload, s.importImage},
		{spec{"GET /images/{name}/export", 200, "export-image", "Read an image as an archive.",
			"An OCI Image Layout in a tar archive, which docker load and podman load take too. The layers are as they arrived, with the same digests.",
			[]api.Code{api.CodeNotFound, api.CodeConflict}}, tarType, nil, "", s.exportImage},
		{spec{"PUT /kernels/{name}", 201, "import-kernel", "Make a kernel of a package or an image.",
			"The body is a linux-image .deb, the archive that the kernel's own build makes (make tar-pkg), or a vmlinux or bzImage that carries its configuration. What is no package has to be built with what banger needs, else it is unsupported. Root only.",
			[]api.Code{api.CodeInvalid, api.CodeAlreadyExists, api.CodeUnavailable, api.CodeNoSpace, api.CodeUnsupported}}, json, api.Kernel{}, upload, s.importKernel},
		{spec{"GET /openapi.json", 200, "openapi", "Get this document.", "", nil}, documentType, map[string]any{}, "", s.serveDocument(doc)},
	}...) {
		mux.HandleFunc(r.pattern(), r.handle)
		doc.AddOperation(r.operation(doc))
	}
}

// operation describes r as huma describes the JSON routes.
func (r stream) operation(doc *huma.OpenAPI) *huma.Operation {
	op := r.spec.operation(doc)
	success := &huma.Response{Description: http.StatusText(r.status)}
	op.Responses[strconv.Itoa(r.status)] = success
	if r.answers != "" {
		media := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
		if r.example != nil {
			media.Schema = schemaOf(doc, r.example)
		}
		success.Content = map[string]*huma.MediaType{r.answers: media}
	}
	for name := range pathParams {
		if strings.Contains(op.Path, "{"+name+"}") {
			op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
		}
	}
	if query, ok := queries[r.id]; ok {
		op.Parameters = append(op.Parameters, queryParams(doc, query)...)
	}
	if r.takes != "" {
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			r.takes: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}}
	}
	return op
}

// operationEvent and noEvent describe server-sent events.
type (
	operationEvent struct {
		Event string `json:"event" enum:"progress,done" doc:"What Data is: Progress, or the Operation at its end."`
		Data  string `json:"data" doc:"JSON on one line."`
	}
	noEvent struct{}
)

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
	q, err := api.ParseReadLogs(r.URL.Query())
	if err != nil {
		s.fail(w, err)
		return
	}
	log, err := s.VMs.Logs(ctx, caller(ctx), r.PathValue("vm"), q)
	if err != nil {
		s.fail(w, err)
		return
	}
	defer log.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rc := http.NewResponseController(w)
	out := writeFunc(func(p []byte) (int, error) {
		n, err := w.Write(p)
		if err == nil && q.Follow {
			err = rc.Flush()
		}
		return n, err
	})
	if q.Follow && rc.Flush() != nil {
		return // the caller is gone
	}
	if _, err := io.Copy(out, log); err != nil && r.Context().Err() == nil {
		panic(http.ErrAbortHandler) // the reader must not take it for the whole
	}
}

// exec connects the caller with the agent's own WebSocket, ssh with its ssh server.
func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	s.proxy(w, r, "exec in", "/exec", "websocket")
}

// ssh has the sessions borrow what they lack of the host meanwhile.
func (s *server) ssh(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	go s.VMs.Lend(ctx, caller(ctx), r.PathValue("vm"))
	s.proxy(w, r, "ssh to", "/ssh", api.UpgradeStream)
}

// proxy connects the caller with a route of the agent that switches to a protocol.
func (s *server) proxy(w http.ResponseWriter, r *http.Request, what, path, protocol string) {
	ctx, cancel := streaming(r)
	defer cancel()
	ref := r.PathValue("vm")
	agent, err := s.VMs.Agent(ctx, caller(ctx), ref)
	if err == nil && !strings.EqualFold(r.Header.Get("Upgrade"), protocol) {
		err = api.Errorf(api.CodeInvalid, "%s VM %s: the request does not ask for the protocol %s", what, ref, protocol)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = &url.URL{Scheme: "http", Host: "agent", Path: path}, "agent"
		},
		ModifyResponse: func(resp *http.Response) error {
			switch {
			case resp.StatusCode == http.StatusSwitchingProtocols:
				return nil
			case resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusUpgradeRequired:
				return api.Errorf(api.CodeInvalid, "%s VM %s: the request to switch to the protocol %s is not in order", what, ref, protocol)
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
	q, err := api.ParseImportImage(r.URL.Query())
	if err != nil {
		s.fail(w, err)
		return
	}
	take := s.Images.Import
	if q.Replace {
		take = s.Images.Replace
	}
	img, err := take(ctx, caller(ctx), r.PathValue("name"), announced{patient(w, r.Body), r.ContentLength}, func(api.Progress) {})
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
	k, err := s.Kernels.Import(ctx, name, patient(w, r.Body), func(api.Progress) {})
	s.created(w, kernelOut(k), err)
}

// announced is a body whose length its sender has said, or -1.
type announced struct {
	io.Reader
	n int64
}

// Len implements what intake.Known asks for.
func (a announced) Len() int { return int(max(0, a.n)) }

// patient reads a body that may be slow but has to go on: every read has uploadPause.
func patient(w http.ResponseWriter, body io.Reader) io.Reader {
	rc := http.NewResponseController(w)
	return readFunc(func(p []byte) (int, error) {
		if err := rc.SetReadDeadline(time.Now().Add(uploadPause)); err != nil {
			return 0, err
		}
		n, err := body.Read(p)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, api.Errorf(api.CodeUnavailable, "receive upload: nothing came for %v", uploadPause)
		}
		// What is done with the body may take longer.
		if clear := rc.SetReadDeadline(time.Time{}); err == nil {
			err = clear
		}
		return n, err // io.EOF as it is: readers compare it
	})
}

type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

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
