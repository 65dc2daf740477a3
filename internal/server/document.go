package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

// spec is what the document says of a route. A new one needs nothing else than a
// call of route or routeEmpty, or a line in streamRoutes, with its spec; then
// `make openapi`.
type spec struct {
	at          string // method and path under the version, as in http.ServeMux: "GET /vms/{vm}"
	status      int    // of success
	id, summary string
	description string     // what the summary does not say; may be empty
	refusals    []api.Code // the codes of its errors, besides those in always
}

// always are the codes that any route may answer with: a caller who is unknown or a
// browser is denied, and a defect is internal.
var always = []api.Code{api.CodePermissionDenied, api.CodeInternal}

// codeMeanings are the codes as the document explains them.
var codeMeanings = map[api.Code]string{
	api.CodeNotFound:         "there is no such object, or none that the caller may see",
	api.CodeAlreadyExists:    "the name is taken",
	api.CodeInvalid:          "the request, or a file that came with it, is wrong",
	api.CodeConflict:         "the object's state forbids it now",
	api.CodeUnavailable:      "something that is needed is missing or does not answer",
	api.CodeNoSpace:          "a disk or a quota is full",
	api.CodePermissionDenied: "the caller may not do that",
	api.CodeUnsupported:      "this host, kernel or engine cannot do that",
	api.CodeGuest:            "the guest or its agent misbehaved",
	api.CodeInternal:         "a defect of banger's own",
}

// tags are the groups of the document: the first element of each path.
var tags = []*huma.Tag{
	{Name: "system", Description: "The daemon itself."},
	{Name: "vms", Description: "Virtual machines. A caller sees their own, root all."},
	{Name: "operations", Description: "Requests that take longer than an answer should. They are answered with 202 and an Operation, whose end is to be " +
		"waited for at /v1/operations/{id}/events; what goes wrong after the answer is the operation's error."},
	{Name: "images", Description: "Root file systems from which VMs are made."},
	{Name: "kernels", Description: "Kernels with their modules. They belong to nobody: all may use them."},
	{Name: "openapi.json", Description: "This document."},
}

// pathParams describes the parameters in paths.
var pathParams = map[string]string{
	"vm":   "A VM's name, its id, or the beginning of its id if no other VM's begins so.",
	"id":   "The operation's id.",
	"name": "The name.",
}

const about = `bangerd runs microVMs on one Linux host. It serves this interface on a Unix socket, /run/banger/bangerd.sock unless configured otherwise, and takes the uid of the caller from the socket: there is nothing to log in with. Requests of browsers, which have an Origin header, are refused.

Every error is an Error, whose code is one of a closed set; each code has one HTTP status. A path that there is not, or a method that a path does not take, is not_found. What is no HTTP at all is answered by 400 or 431 in plain text before it reaches a route.`

const documentType = "application/openapi+json"

// newDocument is the document of huma without any route.
func newDocument() huma.Config {
	c := huma.DefaultConfig("banger", api.Version)
	// No links into schemas in the answers, no pages for browsers.
	c.CreateHooks, c.DocsPath, c.SchemasPath, c.OpenAPIPath = nil, "", "", ""
	c.Info.Description = about
	c.Info.License = &huma.License{Name: "Apache 2.0", Identifier: "Apache-2.0"}
	c.Formats = maps.Clone(c.Formats)
	for name, format := range c.Formats {
		format.Marshal = writeJSON
		c.Formats[name] = format
	}
	c.Servers = []*huma.Server{{URL: "http://bangerd", Description: "Over the daemon's Unix socket, whatever the host is called."}}
	c.Tags = tags
	return c
}

// writeJSON writes what a route answers. Of a list it sends elements as they are made:
// that of a thousand VMs is read while it is written.
func writeJSON(w io.Writer, v any) error {
	buf := bufio.NewWriterSize(w, 32<<10)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	list := reflect.ValueOf(v)
	if list.Kind() != reflect.Slice || list.IsNil() {
		return errors.Join(e.Encode(v), buf.Flush())
	}
	_ = buf.WriteByte('[') // Flush tells
	for i := range list.Len() {
		if i > 0 {
			_ = buf.WriteByte(',')
		}
		if err := e.Encode(list.Index(i).Addr().Interface()); err != nil {
			return err
		}
	}
	_, _ = buf.WriteString("]\n")
	return buf.Flush()
}

// pattern is sp's place as http.ServeMux takes it.
func (sp spec) pattern() string {
	method, path, _ := strings.Cut(sp.at, " ")
	return method + " " + prefix + path
}

// operation describes sp but for its success.
func (sp spec) operation(doc *huma.OpenAPI) *huma.Operation {
	method, path, _ := strings.Cut(sp.pattern(), " ")
	tag, _, _ := strings.Cut(strings.TrimPrefix(path, prefix+"/"), "/")
	op := &huma.Operation{Method: method, Path: path, OperationID: sp.id, DefaultStatus: sp.status, Summary: sp.summary, Description: sp.description,
		Tags: []string{tag}, Responses: map[string]*huma.Response{}}
	byStatus := map[int][]string{}
	for _, code := range slices.Concat(sp.refusals, always) {
		status := code.HTTPStatus()
		if !slices.Contains(byStatus[status], string(code)) {
			byStatus[status] = append(byStatus[status], string(code))
		}
	}
	for status, codes := range byStatus {
		op.Responses[strconv.Itoa(status)] = refusal(doc, codes)
	}
	return op
}

// refusal is a reference to the answer that carries an error with one of the codes.
func refusal(doc *huma.OpenAPI, codes []string) *huma.Response {
	slices.Sort(codes)
	name := strings.Join(codes, "-or-")
	if doc.Components.Responses == nil {
		doc.Components.Responses = map[string]*huma.Response{}
	}
	if doc.Components.Responses[name] == nil {
		var text []string
		for _, code := range codes {
			text = append(text, code+": "+codeMeanings[api.Code(code)]+".")
		}
		doc.Components.Responses[name] = &huma.Response{Description: strings.Join(text, " "),
			Content: map[string]*huma.MediaType{"application/json": {Schema: schemaOf(doc, api.Error{})}}}
	}
	return &huma.Response{Ref: "#/components/responses/" + name}
}

// schemaOf is a reference to the schema of v's type.
func schemaOf(doc *huma.OpenAPI, v any) *huma.Schema {
	return doc.Components.Schemas.Schema(reflect.TypeOf(v), true, "")
}

// route registers a JSON route that is answered with f's result.
func route[I, T any](s *server, routes huma.API, sp spec, f func(ctx context.Context, caller uint32, in *I) (T, error)) {
	huma.Register(routes, *sp.operation(routes.OpenAPI()), func(ctx context.Context, in *I) (*answer[T], error) {
		v, err := f(ctx, caller(ctx), in)
		if err != nil {
			return nil, s.coded(err)
		}
		return &answer[T]{v}, nil
	})
}

// routeEmpty registers a JSON route whose answer has no body.
func routeEmpty[I any](s *server, routes huma.API, sp spec, f func(ctx context.Context, caller uint32, in *I) error) {
	huma.Register(routes, *sp.operation(routes.OpenAPI()), func(ctx context.Context, in *I) (*none, error) {
		if err := f(ctx, caller(ctx), in); err != nil {
			return nil, s.coded(err)
		}
		return nil, nil
	})
}

// render writes the document, indented and in an order that does not change.
func render(doc *huma.OpenAPI) ([]byte, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var tree map[string]any
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	schemas := branch(tree, "components", "schemas")
	for name, schema := range schemas {
		if !bytes.Contains(raw, []byte(`"#/components/schemas/`+name+`"`)) {
			delete(schemas, name) // huma's, of its own errors
		} else if t := doc.Components.Schemas.TypeFromRef("#/components/schemas/" + name); t != nil {
			addLimits(schema, t)
		}
	}
	for _, item := range branch(tree, "paths") {
		for _, op := range item.(map[string]any) {
			addParamDocs(op)
		}
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err = e.Encode(tree) // the keys of maps are sorted
	return out.Bytes(), err
}

func branch(tree map[string]any, keys ...string) map[string]any {
	for _, key := range keys {
		tree, _ = tree[key].(map[string]any)
	}
	return tree
}

// addLimits adds to the schema of a type what the tags min, max and match of its
// fields say. huma's own tags for these would have it refuse requests before the
// services do, who say what would be right.
func addLimits(schema any, t reflect.Type) {
	tree, _ := schema.(map[string]any)
	properties := branch(tree, "properties")
	if t.Kind() != reflect.Struct {
		return
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		property, ok := properties[name].(map[string]any)
		if !ok {
			continue
		}
		if f.Type.Kind() == reflect.Uint32 {
			property["format"], property["maximum"] = "int64", uint32(math.MaxUint32)
		}
		for tag, key := range map[string]string{"min": "minimum", "max": "maximum"} {
			if v, ok := f.Tag.Lookup(tag); ok {
				property[key] = json.Number(v)
			}
		}
		if v, ok := f.Tag.Lookup("match"); ok {
			property["pattern"] = v
		}
	}
}

func addParamDocs(operation any) {
	op, _ := operation.(map[string]any)
	params, _ := op["parameters"].([]any)
	for _, v := range params {
		p, _ := v.(map[string]any)
		if p["in"] == "path" && p["description"] == nil {
			p["description"] = pathParams[p["name"].(string)]
			branch(p, "schema")["minLength"] = 1
		}
	}
}

// serveDocument answers with doc, which has to be complete at the first request.
func (s *server) serveDocument(doc *huma.OpenAPI) http.HandlerFunc {
	text := sync.OnceValues(func() ([]byte, error) { return render(doc) })
	return func(w http.ResponseWriter, _ *http.Request) {
		b, err := text()
		if err != nil {
			s.fail(w, err)
			return
		}
		w.Header().Set("Content-Type", documentType)
		_, _ = w.Write(b) // the caller is gone
	}
}
