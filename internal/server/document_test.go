package server

import (
	"encoding/json"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

const checkedIn = "../../api/openapi.json"

var update = flag.Bool("update", false, "write "+checkedIn)

// patterns is a mux that notes what is registered.
type patterns struct {
	*http.ServeMux
	all []string
}

func (p *patterns) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	p.all = append(p.all, pattern)
	p.ServeMux.HandleFunc(pattern, h)
}

func registered() (*huma.OpenAPI, []string) {
	mux := &patterns{ServeMux: http.NewServeMux()}
	s := &server{Config{Log: slog.New(slog.DiscardHandler)}}
	return s.register(mux), mux.all
}

// TestDocumentIsCheckedIn compares the document with the one in the repository.
func TestDocumentIsCheckedIn(t *testing.T) {
	doc, _ := registered()
	now, err := render(doc)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(checkedIn, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(checkedIn)
	if err != nil {
		t.Fatal(err)
	}
	if string(kept) != string(now) {
		t.Errorf("api/openapi.json is not what the server says of itself: make openapi")
	}
	d := started(t, 1000)
	resp, text := d.do(t, "GET", "/v1/openapi.json", "", nil)
	if text != string(now) || resp.Header.Get("Content-Type") != documentType {
		t.Errorf("the server serves another document: %s, %d bytes", resp.Status, len(text))
	}
}

// described yields the document's operations by what ServeMux calls their patterns.
func described(doc *huma.OpenAPI) map[string]*huma.Operation {
	all := map[string]*huma.Operation{}
	for path, item := range doc.Paths {
		for method, op := range map[string]*huma.Operation{"GET": item.Get, "PUT": item.Put, "POST": item.Post, "PATCH": item.Patch,
			"DELETE": item.Delete, "HEAD": item.Head, "OPTIONS": item.Options, "TRACE": item.Trace} {
			if op != nil {
				all[method+" "+path] = op
			}
		}
	}
	return all
}

func TestEveryRouteIsDescribed(t *testing.T) {
	doc, all := registered()
	operations := described(doc)
	for _, pattern := range all {
		if operations[pattern] == nil {
			t.Errorf("%s is served but not described", pattern)
		}
	}
	for pattern := range operations {
		if !slices.Contains(all, pattern) {
			t.Errorf("%s is described but not served", pattern)
		}
	}
}

func TestDescriptionsAreComplete(t *testing.T) {
	doc, _ := registered()
	ids := map[string]string{}
	for pattern, op := range described(doc) {
		if !strings.HasSuffix(op.Summary, ".") || op.OperationID == "" || ids[op.OperationID] != "" {
			t.Errorf("%s: summary %q, id %q (which %q has too)", pattern, op.Summary, op.OperationID, ids[op.OperationID])
		}
		ids[op.OperationID] = pattern
		if len(op.Tags) != 1 || !slices.ContainsFunc(tags, func(tag *huma.Tag) bool { return tag.Name == op.Tags[0] }) {
			t.Errorf("%s: %v is not among the tags", pattern, op.Tags)
		}
		for _, p := range op.Parameters {
			if p.Description == "" && (p.In != "path" || pathParams[p.Name] == "") {
				t.Errorf("%s: parameter %s says nothing of itself", pattern, p.Name)
			}
		}
		if strings.Contains(pattern, "{vm}") && op.Responses["404"] == nil {
			t.Errorf("%s: finds any VM", pattern)
		}
		for status, answer := range op.Responses {
			success := status[0] < '4'
			if ref, ok := strings.CutPrefix(answer.Ref, "#/components/responses/"); ok {
				answer = doc.Components.Responses[ref]
			}
			if !success && (answer.Content["application/json"] == nil || answer.Content["application/json"].Schema.Ref != "#/components/schemas/Error") {
				t.Errorf("%s: %s is not an Error", pattern, status)
			}
			if status == "default" || status == "422" || answer.Description == "" {
				t.Errorf("%s: status %s, %q", pattern, status, answer.Description)
			}
		}
	}
	field, _ := reflect.TypeFor[api.Error]().FieldByName("Code")
	for code := range strings.SplitSeq(field.Tag.Get("enum"), ",") {
		if codeMeanings[api.Code(code)] == "" {
			t.Errorf("code %s is not explained", code)
		}
	}
}

// TestFieldsSayWhatTheyAre looks at every type that travels.
func TestFieldsSayWhatTheyAre(t *testing.T) {
	doc, _ := registered()
	own := reflect.TypeFor[api.VM]().PkgPath()
	for name := range doc.Components.Schemas.Map() {
		typ := doc.Components.Schemas.TypeFromRef("#/components/schemas/" + name)
		if typ == nil || typ.Kind() != reflect.Struct || typ.PkgPath() != own {
			continue
		}
		for f := range typ.Fields() {
			if f.IsExported() && f.Tag.Get("json") != "-" && f.Tag.Get("doc") == "" {
				t.Errorf("%s.%s has no tag doc", name, f.Name)
			}
		}
	}
}

func TestLimitsAreInTheDocument(t *testing.T) {
	doc, _ := registered()
	text, err := render(doc)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]any{
		"CreateVM.name.pattern":  "^([a-z]([a-z0-9-]{0,61}[a-z0-9])?)?$",
		"CreateVM.cpus.maximum":  32.0,
		"StopVM.timeout.maximum": maxStopTimeout.Seconds(),
		"VM.owner.maximum":       4294967295.0,
	} {
		keys := strings.Split(at, ".")
		if got := branch(tree, "components", "schemas", keys[0], "properties", keys[1])[keys[2]]; got != want {
			t.Errorf("%s is %v, want %v", at, got, want)
		}
	}
}
