package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/guest"
)

// lender is a host that listens to the wants of b and serves them with pack.
func lender(t *testing.T, b *borrower, pack guest.Packer) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /wants", b.serveWants)
	mux.HandleFunc("PUT /lent", b.serveLent)
	agent := httptest.NewServer(mux)
	conn, err := guest.Connect(t.Context(), guest.Stream, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", agent.Listener.Addr().String())
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- conn.Lend(ctx, pack) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("lend: %v", err)
		}
		conn.Close()
		agent.Close()
	})
}

// writePack writes the archive of a program with one library.
func writePack(w io.Writer) error {
	t := tar.NewWriter(w)
	for _, name := range []string{"lib/", "program", "lib/libx.so.1"} {
		h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(name))}
		if strings.HasSuffix(name, "/") {
			h.Size = 0
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(t, name[:h.Size]); err != nil {
			return err
		}
	}
	return t.Close()
}

func TestBorrow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "banger", "rsync")
	b := newBorrower()
	b.has = func() bool { _, err := os.Stat(dir); return err == nil }
	b.take = func(r io.Reader) error { return unpackLoan(dir, r) }
	packs := 0
	lender(t, b, func(context.Context, string) (func(io.Writer) error, error) {
		if packs++; packs == 1 {
			return nil, errors.New("none here")
		}
		return writePack, nil
	})
	if err := b.borrow(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "does not lend its own: none here") {
		t.Errorf("a host without it: %v", err)
	}
	for range 2 {
		if err := b.borrow(); err != nil {
			t.Fatal(err)
		}
	}
	if packs != 2 {
		t.Errorf("asked %d times; what is there need not be asked for", packs)
	}
	for name, mode := range map[string]fs.FileMode{".": fs.ModeDir | 0o755, "program": 0o755, "lib/libx.so.1": 0o755} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v (%v)", name, info, err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 {
		t.Errorf("beside it: %v (%v)", left, err)
	}
}

// An archive that breaks off leaves nothing, and is told to who waits for it.
func TestBorrowBreaksOff(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rsync")
	b := newBorrower()
	b.has = func() bool { return false }
	b.take = func(r io.Reader) error {
		var all bytes.Buffer
		if _, err := io.CopyN(&all, r, 1000); err != nil {
			return err
		}
		return unpackLoan(dir, &all)
	}
	agent := httptest.NewServer(http.HandlerFunc(b.serveLent))
	defer agent.Close()
	go func() {
		<-b.wants
		var pack bytes.Buffer
		_ = writePack(&pack)
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, agent.URL, &pack)
		if err != nil {
			return
		}
		if resp, err := agent.Client().Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	if err := b.borrow(); err == nil {
		t.Error("half an archive is taken for the whole")
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 0 {
		t.Errorf("it left %v (%v)", left, err)
	}
}

func TestCallsRsync(t *testing.T) {
	for line, want := range map[string]bool{
		"rsync --server -vlogDtpre.iLsfxC . dst/": true, "mkdir -p x && rsync --server . x": true, "/usr/bin/rsync --server --sender . x": true,
		"rsync --version": false, "ls": false, "some --server": false,
	} {
		if got := callsRsync(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}
