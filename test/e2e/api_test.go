package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/client"
	"banger/internal/hosttest"
)

const (
	// seedVariable replays a run of TestAPI: the seed that it said.
	seedVariable = "BANGER_API_SEED"
	// fixedSeed is that of the run that is the same every time; another one has a
	// seed of its own.
	fixedSeed = 1
	// cases is how many requests of each kind a route gets.
	cases = 6
	// apiTimeout is for a run that does not end; one takes a small part of it.
	apiTimeout = 20 * time.Minute
)

// publicKey is one whose other half nobody has.
const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMZZyIUpR7q8BifCRRuTwx0g/ZlrPYA4wOWQA4H2+lk6"

// apart are the routes that generated requests must not reach, with the reason.
var apart = map[string]string{
	"shutdown":    "ends the daemon that is tested",
	"pull-kernel": "has the host's package manager download a kernel",
	"lease-vm":    "its answer never ends",
}

// TestAPI has schemathesis make requests of the API's description, good and bad
// ones, and compare the answers with it: none is a defect of the server, each has a
// status, a media type and a form that the description names. At the end nothing
// is left.
func TestAPI(t *testing.T) {
	program := os.Getenv("BANGER_SCHEMATHESIS")
	if program == "" {
		t.Skip("BANGER_SCHEMATHESIS does not name schemathesis: run make deps-api, or make test")
	}
	seeds := []uint64{fixedSeed, rand.Uint64N(1 << 32)}
	if text := os.Getenv(seedVariable); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Logf("%s=%d go test -run TestAPI repeats this", seedVariable, seed)
			generated(t, program, seed)
		})
	}
}

func generated(t *testing.T, program string, seed uint64) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "create", "--name", "idle")
	h.Must(t, "vm", "run", "--name", "busy", "--", "true")
	pid := h.DaemonPID()

	c := client.New(h.Paths.Socket())
	description := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(description, tame(t, h.Paths.Socket()), 0o600); err != nil {
		t.Fatal(err)
	}
	url := forward(t, h.Paths.Socket())
	// What ends machines comes last, so that the rest meets one that runs.
	for _, methods := range [][]string{{"GET", "PUT"}, {"POST", "PATCH", "DELETE"}} {
		makeRequests(t, program, description, url, seed, methods)
	}
	if now := h.DaemonPID(); now != pid {
		t.Errorf("the daemon was process %d and is %d", pid, now)
	}
	deleteAll(t, c)
	nothingLeft(t, h)
}

// makeRequests runs schemathesis for the routes with some methods.
func makeRequests(t *testing.T, program, description, url string, seed uint64, methods []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), apiTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "run", description, "--url", url,
		"--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
		"--phases", "examples,coverage,fuzzing", "--max-examples", strconv.Itoa(cases), "--seed", strconv.FormatUint(seed, 10),
		"--continue-on-failure", "--no-shrink", "--generation-database", "none", "--suppress-health-check", "all",
		"--request-timeout", "180", "--warnings", "off", "--no-color")
	for _, method := range methods {
		cmd.Args = append(cmd.Args, "--include-method", method)
	}
	cmd.Dir = filepath.Dir(description)
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%s: %v", strings.Join(methods, ", "), time.Since(began).Round(time.Second))
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// tame is the description that the daemon serves, changed so that the requests
// made of it meet something and end: names of VMs, images and kernels are those
// that there are as often as others.
func tame(t *testing.T, socket string) []byte {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	resp, err := hc.Get("http://bangerd/v1/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		Paths      map[string]map[string]any `json:"paths"`
		Components map[string]map[string]any `json:"components"`
		OpenAPI    string                    `json:"openapi"`
		Info       any                       `json:"info"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{"vm": {"idle", "busy"}, "path": {"/etc/hostname", "/tmp/made", "/no/such/file"}}
	for _, methods := range doc.Paths {
		for method, v := range methods {
			op := v.(map[string]any)
			if apart[op["operationId"].(string)] != "" {
				delete(methods, method)
				continue
			}
			// schemathesis knows how to send bytes of no particular kind.
			if body, ok := op["requestBody"].(map[string]any); ok && body["content"].(map[string]any)["application/json"] == nil {
				body["content"] = map[string]any{"application/octet-stream": map[string]any{}}
			}
			params, _ := op["parameters"].([]any)
			op["parameters"] = tameParameters(op["operationId"].(string), params, known)
		}
	}
	// A VM that is made is not started: each would boot a machine.
	create := doc.Components["schemas"]["CreateVM"].(map[string]any)["properties"].(map[string]any)
	delete(create, "start")
	// The kernel of this host may lack what another kind of root needs, and limits of disks: status 501.
	delete(create, "root_disk")
	delete(create, "io")
	// Nobody guesses a public key.
	key := doc.Components["schemas"]["SSHKey"].(map[string]any)["properties"].(map[string]any)["public_key"].(map[string]any)
	key["anyOf"] = []any{map[string]any{"const": publicKey}, map[string]any{"maxLength": 100}}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tameParameters(id string, params []any, known map[string][]string) []any {
	kept := []any{}
	for _, v := range params {
		p := v.(map[string]any)
		if id == "vm-logs" && p["name"] == "follow" {
			continue // a console that is followed ends with the VM
		}
		if names := known[p["name"].(string)]; names != nil {
			p["schema"] = map[string]any{"anyOf": []any{map[string]any{"enum": names}, p["schema"]}}
		}
		kept = append(kept, p)
	}
	return kept
}

// forward listens on the loopback interface until the end of t and connects who
// calls there with a Unix socket: schemathesis speaks TCP only. The daemon takes
// the caller for the user who runs the test.
func forward(t *testing.T, socket string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { pipe(in, socket) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return "http://" + l.Addr().String()
}

// pipe carries bytes until both ends have ended.
func pipe(in net.Conn, socket string) {
	defer in.Close()
	out, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer out.Close()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(out, in) // the peer sees the end
		_ = out.(*net.UnixConn).CloseWrite()
	})
	_, _ = io.Copy(in, out)
	_ = in.Close() // ends the other direction
	both.Wait()
}

// deleteAll deletes all VMs, all at once.
func deleteAll(t *testing.T, c *client.Client) {
	t.Helper()
	vms, err := c.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(vms) <= 2 {
		t.Errorf("%d VMs at the end: no request came through that makes one", len(vms))
	}
	var all sync.WaitGroup
	for _, vm := range vms {
		all.Go(func() {
			op, err := c.DeleteVM(t.Context(), vm.ID, true)
			if err == nil {
				_, err = c.Wait(t.Context(), op.ID, nil)
			}
			// An operation that came with a request may have deleted it meanwhile.
			if err != nil && api.CodeOf(err) != api.CodeNotFound {
				t.Errorf("delete VM %s: %v", vm.Name, err)
			}
		})
	}
	all.Wait()
}
