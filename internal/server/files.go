package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

// inGuest are the codes of routes that an agent answers.
var inGuest = slices.Concat(ofVM, []api.Code{api.CodeConflict, api.CodeGuest, api.CodeInvalid, api.CodeUnsupported})

const tarType = "application/x-tar"

// guestRoutes are the routes that look into a running VM.
func (s *server) guestRoutes(routes huma.API) {
	route(s, routes, spec{"GET /vms/{vm}/stat", 200, "stat-file", "Look at a path in a running VM.", "", inGuest},
		func(ctx context.Context, caller uint32, in *struct {
			VM     string `path:"vm"`
			Path   string `query:"path" required:"true" doc:"Absolute path in the VM."`
			Follow bool   `query:"follow" doc:"Follow symbolic links, also in the last element."`
		}) (api.File, error) {
			if err := api.CheckPath(in.Path); err != nil {
				return api.File{}, err
			}
			return s.VMs.Stat(ctx, caller, in.VM, in.Path, in.Follow)
		})
	route(s, routes, spec{"GET /vms/{vm}/stats", 200, "vm-stats", "Get what a running VM uses.",
		"The guest's figures are its word. Where it does not answer within some seconds they are absent.", slices.Concat(ofVM, []api.Code{api.CodeConflict})},
		func(ctx context.Context, caller uint32, in *vmInput) (api.Stats, error) {
			return s.VMs.Stats(ctx, caller, in.VM)
		})
	route(s, routes, spec{"GET /vms/{vm}/ports", 200, "vm-ports", "List the ports of a running VM at which something listens.",
		"By number; at most 4096.", inGuest},
		func(ctx context.Context, caller uint32, in *vmInput) ([]api.Port, error) {
			return s.VMs.Ports(ctx, caller, in.VM)
		})
}

// fileStreams are the routes that copy files.
func (s *server) fileStreams() []stream {
	return []stream{
		{spec{"GET /vms/{vm}/files", 200, "read-files", "Read files of a running VM, as a tar archive.",
			"Names in the archive are relative; owners are numbers; modes, dates, links, extended attributes (as PAX records) and devices are kept, sockets are " +
				"left out. What is in the archive is the guest's word: extract it with care. An archive that could not be completed is cut off, and the trailer " +
				api.TrailerError + " holds an Error, in JSON, that says why; where even that cannot be sent, the connection breaks.",
			inGuest}, tarType, nil, "", s.readFiles},
		{spec{"PUT /vms/{vm}/files", 204, "write-files", "Extract a tar archive in a running VM.",
			"Each file appears under its name when it is complete. Names that lead out of the directory, also through symbolic links, are refused.",
			slices.Concat(inGuest, []api.Code{api.CodeNoSpace})}, "", nil, tarType, s.writeFiles},
	}
}

func (s *server) readFiles(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	q, err := api.ParseReadFiles(r.URL.Query())
	if err != nil {
		s.fail(w, err)
		return
	}
	files, err := s.VMs.ReadFiles(ctx, caller(ctx), r.PathValue("vm"), q)
	if err != nil {
		s.fail(w, err)
		return
	}
	defer files.Close()
	w.Header().Set("Content-Type", tarType)
	w.Header().Set("Trailer", api.TrailerError)
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, files, make([]byte, copyBuffer))
	if err == nil || ctx.Err() != nil && r.Context().Err() != nil {
		return
	}
	text, jsonErr := json.Marshal(s.coded(err))
	if errors.Is(err, io.ErrUnexpectedEOF) || jsonErr != nil {
		panic(http.ErrAbortHandler) // where the archive was cut, it may look whole
	}
	w.Header().Set(api.TrailerError, string(text))
}

// copyBuffer is the most that is read at once of what is passed on.
const copyBuffer = 128 << 10

func (s *server) writeFiles(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	q, err := api.ParseWriteFiles(r.URL.Query())
	if err == nil {
		err = s.VMs.WriteFiles(ctx, caller(ctx), r.PathValue("vm"), q, received(patient(w, r.Body)))
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// received is a body whose errors are the caller's.
func received(body io.Reader) io.Reader {
	return readFunc(func(p []byte) (int, error) {
		n, err := body.Read(p)
		if _, coded := errors.AsType[*api.Error](err); err != nil && err != io.EOF && !coded {
			err = api.Errorf(api.CodeInvalid, "receive archive: %w", err)
		}
		return n, err
	})
}

// queries are the queries that streams take, as structs with huma's tags, by the
// ids of the streams.
var queries = map[string]any{"read-files": api.ReadFiles{}, "write-files": api.WriteFiles{}, "vm-logs": api.ReadLogs{},
	"import-image": api.ImportImage{}}

// queryParams describes the fields of such a struct.
func queryParams(doc *huma.OpenAPI, v any) []*huma.Param {
	var params []*huma.Param
	for f := range reflect.TypeOf(v).Fields() {
		params = append(params, &huma.Param{Name: f.Tag.Get("query"), In: "query", Description: f.Tag.Get("doc"),
			Required: f.Tag.Get("required") == "true", Schema: doc.Components.Schemas.Schema(f.Type, true, "")})
	}
	return params
}
