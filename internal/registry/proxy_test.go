package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// proxiedRef is set for a process of TestBehindProxy's that only gets what it names.
const proxiedRef, proxiedName = "BANGER_TEST_PROXIED_REF", "registry.example:5000"

func fetchProxied(ref string) {
	_, err := (&Client{Config{Insecure: []string{proxiedName}}}).Fetch(context.Background(), ref, "", authn.AuthConfig{})
	fmt.Printf("got: %v\n", err)
}

// TestBehindProxy reaches a registry by the proxy of the daemon's environment, which is on
// this host: it may be gone to, and the registry may lead to what the proxy reaches, but
// not to anything else here. A process of its own has that environment.
func TestBehindProxy(t *testing.T) {
	const config = `{"os":"linux"}`
	var asked atomic.Int64
	here := elsewhere(t, "127.0.0.1", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Host == "storage.example":
			_, _ = io.WriteString(w, config)
		case r.URL.Host != proxiedName:
			w.WriteHeader(http.StatusBadGateway)
		case strings.Contains(r.URL.Path, "/manifests/"):
			fmt.Fprintf(w, `{"schemaVersion":2,"config":{"digest":%q,"size":1}}`, digestOf([]byte(config)))
		case strings.Contains(r.URL.Path, "/far/blobs/"):
			http.Redirect(w, r, "http://storage.example/blob", http.StatusTemporaryRedirect)
		case strings.Contains(r.URL.Path, "/near/blobs/"):
			http.Redirect(w, r, "http://"+here+"/blob", http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(proxy.Close)
	for repository, want := range map[string]string{"far": "got: <nil>", "near": "which is not public"} {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), "HTTP_PROXY="+proxy.URL, proxiedRef+"="+proxiedName+"/"+repository+":1")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s, want %q", repository, err, out, want)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("what is on this host was asked %d times", n)
	}
}
