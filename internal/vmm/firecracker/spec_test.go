package firecracker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"go.yaml.in/yaml/v4"
)

// specPath is where Firecracker's description of its API is.
func specPath() string {
	return cmp.Or(os.Getenv("BANGER_FIRECRACKER_API"), filepath.Join("..", "..", "..", "..", "shared", "firecracker", "firecracker.yaml"))
}

// spec returns Firecracker's description of its API, as OpenAPI 3; nil where there is
// none.
func spec(t *testing.T) json.RawMessage {
	t.Helper()
	text, err := readSpec()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var readSpec = sync.OnceValues(func() (json.RawMessage, error) {
	text, err := os.ReadFile(specPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	text, err = json.Marshal(named(tree))
	if err != nil {
		return nil, err
	}
	var old openapi2.T
	if err := json.Unmarshal(text, &old); err != nil {
		return nil, err
	}
	doc, err := openapi2conv.ToV3(&old)
	if err != nil {
		return nil, err
	}
	for _, s := range doc.Components.Schemas {
		// Firecracker refuses fields that it does not know.
		if len(s.Value.Properties) > 0 {
			no := false
			s.Value.AdditionalProperties = openapi3.AdditionalProperties{Has: &no}
		}
	}
	doc.Servers = nil
	return doc.MarshalJSON()
})

// named has the keys of maps, some of which are numbers, be text.
func named(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = named(v[k])
		}
	case map[any]any:
		m := map[string]any{}
		for k := range v {
			m[fmt.Sprint(k)] = named(v[k])
		}
		return m
	case []any:
		for i := range v {
			v[i] = named(v[i])
		}
	}
	return v
}

// checker holds requests and answers to the description.
type checker struct{ router routers.Router }

func newChecker(text []byte) (*checker, error) {
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	router, err := legacy.NewRouter(doc, openapi3.DisableExamplesValidation(), openapi3.DisableSchemaDefaultsValidation(), openapi3.DisableSchemaFormatValidation())
	return &checker{router}, err
}

func (c *checker) input(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
	again := r.Clone(r.Context())
	again.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := c.router.FindRoute(again)
	if err != nil {
		return nil, fmt.Errorf("Invalid request method and/or path: %s %s: %w", r.Method, r.URL.Path, err)
	}
	return &openapi3filter.RequestValidationInput{Request: again, PathParams: params, Route: route}, nil
}

func (c *checker) request(r *http.Request, body []byte) error {
	in, err := c.input(r, body)
	if err == nil {
		err = openapi3filter.ValidateRequest(r.Context(), in)
	}
	if err != nil {
		return fmt.Errorf("An error occurred when deserializing the json body of a request: %w", err)
	}
	return nil
}

func (c *checker) response(r *http.Request, body []byte, status int, header http.Header, answer []byte) error {
	in, err := c.input(r, body)
	if err != nil {
		return nil // it was refused for that
	}
	return openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: status, Header: header, Body: io.NopCloser(bytes.NewReader(answer)),
	})
}

// The checker refuses what the real one would.
func TestCheckerRefuses(t *testing.T) {
	text := spec(t)
	if text == nil {
		t.Skipf("%s, Firecracker's description of its API, is not on this host", specPath())
	}
	c, err := newChecker(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		method, path, body string
		ok                 bool
	}{
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 128}`, true},
		{"PUT", "/machine-config", `{"vcpu_count": 33, "mem_size_mib": 128}`, false},
		{"PUT", "/machine-config", `{"mem_size_mib": 128}`, false},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 128, "cpus": 1}`, false},
		{"PUT", "/vsock", `{"guest_cid": 2, "uds_path": "v"}`, false},
		{"PUT", "/drives/a", `{"drive_id": "a", "is_root_device": false, "io_engine": "Quick"}`, false},
		{"POST", "/drives/a", `{}`, false},
		{"PUT", "/nothing", `{}`, false},
	} {
		r, err := http.NewRequest(tc.method, "http://localhost"+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if err := c.request(r, []byte(tc.body)); (err == nil) != tc.ok {
			t.Errorf("%s %s %s: %v", tc.method, tc.path, tc.body, err)
		}
	}
}
