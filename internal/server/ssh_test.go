package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"banger/api"
)

// streamAgent answers GET /ssh with a stream that says, at the end of what it
// read, how much that was; or with a plain answer of a status.
func streamAgent(t *testing.T, status int) *http.Transport {
	t.Helper()
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ssh" || r.Header.Get("Upgrade") != api.UpgradeStream {
			t.Errorf("the agent was asked for %s with Upgrade %q", r.URL, r.Header.Get("Upgrade"))
		}
		if status != http.StatusSwitchingProtocols {
			http.Error(w, "no such route", status)
			return
		}
		conn, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nhello ", api.UpgradeStream)
		n, err := io.Copy(io.Discard, in)
		_, _ = fmt.Fprintf(conn, "got %d %v", n, err)
	}))
	t.Cleanup(agent.Close)
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("tcp", agent.Listener.Addr().String())
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// Each direction of the stream ends for itself, all the way.
func TestSSHStream(t *testing.T) {
	d := started(t, 1000)
	d.vms.agent = streamAgent(t, http.StatusSwitchingProtocols)
	stream, err := d.SSH(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	const size = 1 << 20
	if _, err := stream.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(stream); err != nil || string(answer) != fmt.Sprintf("hello got %d <nil>", size) {
		t.Errorf("answer %q (%v)", answer, err)
	}
}

func TestSSHStreamEndsWithTheDaemon(t *testing.T) {
	d := newDaemon(t, 1000)
	d.vms.agent = streamAgent(t, http.StatusSwitchingProtocols)
	stop := d.serve(t)
	stream, err := d.SSH(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	stop()
	if _, err := io.Copy(io.Discard, stream); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
}

func TestSSHOfAnOlderAgent(t *testing.T) {
	d := started(t, 1000)
	d.vms.agent = streamAgent(t, http.StatusNotFound)
	if _, err := d.SSH(t.Context(), "one"); api.CodeOf(err) != api.CodeGuest || !strings.Contains(api.AsError(err).Hint, "start") {
		t.Errorf("got %v, hint %q", err, api.AsError(err).Hint)
	}
	if _, err := d.SSH(t.Context(), "two"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("an unknown VM: %v", err)
	}
}

func TestAuthorizeSSH(t *testing.T) {
	d := started(t, 1000)
	access, err := d.AuthorizeSSH(t.Context(), "one", "ssh-ed25519 AAAA me")
	if err != nil || access.VM != "1" || access.Name != "one" || access.HostPublicKey == "" {
		t.Errorf("got %+v, %v", access, err)
	}
	if d.vms.asked != "authorize ssh-ed25519 AAAA me" {
		t.Errorf("the service was asked to %q", d.vms.asked)
	}
	if _, err := d.AuthorizeSSH(t.Context(), "two", "x"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("an unknown VM: %v", err)
	}
	if _, err := d.AuthorizeSSH(t.Context(), "one", strings.Repeat("x", 5000)); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a key of 5000 bytes: %v", err)
	}
}
