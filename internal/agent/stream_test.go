package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"banger/api"
)

// openStream asks a server for a stream to one of its ports.
func openStream(t *testing.T, address, query, upgrade string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	// The first bytes come with the request, and are not lost.
	_, err = fmt.Fprintf(conn, "GET /tcp%s HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nfirst ", query, upgrade)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), in, resp
}

func TestTCP(t *testing.T) {
	agent := httptest.NewServer(Handler(func(time.Duration) {}))
	defer agent.Close()
	address := strings.TrimPrefix(agent.URL, "http://")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(conn) // to the end of one direction
			_, _ = fmt.Fprintf(conn, "got %q", all)
			_ = conn.Close()
		}
	}()
	query := fmt.Sprintf("?port=%d", l.Addr().(*net.TCPAddr).Port)

	conn, in, resp := openStream(t, address, query, api.UpgradeStream)
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != api.UpgradeStream {
		t.Fatalf("answer %s", resp.Status)
	}
	if _, err := io.WriteString(conn, "second"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(in); err != nil || string(answer) != `got "first second"` {
		t.Errorf("answer %q (%v)", answer, err)
	}

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := fmt.Sprintf("?port=%d", closed.Addr().(*net.TCPAddr).Port)
	_ = closed.Close()
	for _, test := range []struct {
		query, upgrade string
		status         int
	}{
		{query, "websocket", http.StatusUpgradeRequired},
		{nobody, api.UpgradeStream, http.StatusBadGateway},
		{"", api.UpgradeStream, http.StatusBadRequest},
		{"?port=0", api.UpgradeStream, http.StatusBadRequest},
		{"?port=65536", api.UpgradeStream, http.StatusBadRequest},
		{"?port=ssh", api.UpgradeStream, http.StatusBadRequest},
	} {
		if _, _, resp := openStream(t, address, test.query, test.upgrade); resp.StatusCode != test.status {
			t.Errorf("%s, %s: %s, want %d", test.query, test.upgrade, resp.Status, test.status)
		}
	}
}
