package agent

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/archive"
)

// request makes a request of an agent and returns the answer with its body read.
func request(t *testing.T, server *httptest.Server, method, path string, query url.Values, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path+"?"+query.Encode(), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func newAgent(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(Handler(func(time.Duration) {}))
	t.Cleanup(server.Close)
	return server
}

// TestFiles copies a tree through the routes, several times over one connection.
func TestFiles(t *testing.T) {
	agent := newAgent(t)
	from, to := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "file"), []byte("data"), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", "three"} {
		resp, tree := request(t, agent, "GET", "/files", api.ReadFiles{Path: from}.Values(), nil)
		if resp.StatusCode != http.StatusOK || resp.Trailer.Get(api.TrailerError) != "" {
			t.Fatalf("%s: %q", resp.Status, tree)
		}
		padded := io.MultiReader(strings.NewReader(tree), bytes.NewReader(make([]byte, 700<<10)))
		resp, text := request(t, agent, "PUT", "/files", api.WriteFiles{Path: to, Name: name}.Values(), padded)
		got, err := os.ReadFile(filepath.Join(to, name, "file"))
		if resp.StatusCode != http.StatusNoContent || err != nil || string(got) != "data" {
			t.Fatalf("%s: %s, %q, %v", resp.Status, text, got, err)
		}
	}
}

// TestFilesRefused asks for what there is not.
func TestFilesRefused(t *testing.T) {
	agent := newAgent(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var tree bytes.Buffer
	if err := archive.Write(&tree, dir, archive.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		method, path string
		query        url.Values
		want         api.Code
	}{
		{"GET", "/files", api.ReadFiles{Path: dir + "/none"}.Values(), api.CodeNotFound},
		{"GET", "/files", api.ReadFiles{Path: "relative"}.Values(), api.CodeInvalid},
		{"GET", "/files", url.Values{"path": {dir}, "follow": {"maybe"}}, api.CodeInvalid},
		{"GET", "/stat", api.ReadFiles{Path: dir + "/none"}.Values(), api.CodeNotFound},
		{"PUT", "/files", api.WriteFiles{Path: dir + "/none"}.Values(), api.CodeNotFound},
		{"PUT", "/files", api.WriteFiles{Path: file}.Values(), api.CodeConflict},
		{"PUT", "/files", api.WriteFiles{Path: dir, Name: "file"}.Values(), api.CodeConflict},
		{"PUT", "/files", api.WriteFiles{Path: dir, Name: "../x"}.Values(), api.CodeInvalid},
	} {
		resp, text := request(t, agent, tc.method, tc.path, tc.query, bytes.NewReader(tree.Bytes()))
		var e api.Error
		if err := json.Unmarshal([]byte(text), &e); err != nil || e.Code != tc.want || resp.StatusCode != tc.want.HTTPStatus() {
			t.Errorf("%s %s %v: %s, %s", tc.method, tc.path, tc.query, resp.Status, text)
		}
	}
}

// TestFilesCutOff reads a tree of which a file cannot be read once much has been
// sent: the trailer says so and the archive is not whole.
func TestFilesCutOff(t *testing.T) {
	agent := newAgent(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, "b")
	for len(long) < 3800 { // what is in here has paths that are too long
		long = filepath.Join(long, strings.Repeat("d", 200))
	}
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(long)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Join(strings.Repeat("e", 200), strings.Repeat("f", 200)), 0o700); err != nil {
		t.Fatal(err)
	}
	resp, text := request(t, agent, "GET", "/files", api.ReadFiles{Path: dir}.Values(), nil)
	var e api.Error
	if err := json.Unmarshal([]byte(resp.Trailer.Get(api.TrailerError)), &e); err != nil || e.Code != api.CodeUnsupported {
		t.Errorf("trailer %q, %v", resp.Trailer.Get(api.TrailerError), err)
	}
	r := tar.NewReader(strings.NewReader(text))
	for err == nil {
		_, err = r.Next()
	}
	if err == io.EOF {
		t.Error("the archive looks whole")
	}
}

func TestStat(t *testing.T) {
	agent := newAgent(t)
	dir := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for follow, want := range map[bool]api.File{
		false: {Path: dir + "/link", Kind: api.FileSymlink, Target: "/etc"}, true: {Path: "/etc", Kind: api.FileDirectory}} {
		resp, text := request(t, agent, "GET", "/stat", api.ReadFiles{Path: dir + "/link", Follow: follow}.Values(), nil)
		var f api.File
		if err := json.Unmarshal([]byte(text), &f); err != nil || resp.StatusCode != 200 || f.Path != want.Path || f.Kind != want.Kind || f.Target != want.Target {
			t.Errorf("follow %v: %s, %s", follow, resp.Status, text)
		}
	}
}
