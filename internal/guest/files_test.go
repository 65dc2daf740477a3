package guest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/guest/wire"
)

func connected(t *testing.T, mux *http.ServeMux) *Conn {
	t.Helper()
	c, err := Connect(t.Context(), Serial, serve(t, mux), "secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func sane() *http.ServeMux { return greeting(fmt.Sprintf(`{"protocol":%d}`, wire.Protocol)) }

// TestFilesOfHostileGuest reads archives that end in all the ways that they can.
func TestFilesOfHostileGuest(t *testing.T) {
	mux := sane()
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", api.TrailerError)
		_, _ = io.WriteString(w, "archive")
		_ = http.NewResponseController(w).Flush()
		switch r.URL.Query().Get("path") {
		case "/changed":
			w.Header().Set(api.TrailerError, `{"code":"conflict","message":"read /changed:\u001b[2J it became shorter","hint":"again\u0007"}`)
		case "/odd":
			w.Header().Set(api.TrailerError, `{"code":"internal","message":"defect","hint":""}`)
		case "/nonsense":
			w.Header().Set(api.TrailerError, "nonsense")
		case "/broken":
			panic(http.ErrAbortHandler)
		}
	})
	c := connected(t, mux)
	for path, want := range map[string]struct {
		code    api.Code
		message string
		broken  bool
	}{
		"/whole":    {},
		"/changed":  {api.CodeConflict, "read /changed:[2J it became shorter", false},
		"/odd":      {api.CodeGuest, "defect", false},
		"/nonsense": {api.CodeGuest, "not understood", false},
		"/broken":   {api.CodeGuest, "broke", true},
	} {
		files, err := c.ReadFiles(t.Context(), api.ReadFiles{Path: path})
		if err == nil {
			_, err = io.ReadAll(files)
			_ = files.Close()
		}
		if api.CodeOf(err) != want.code || err != nil && !strings.Contains(err.Error(), want.message) || errors.Is(err, io.ErrUnexpectedEOF) != want.broken {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestAnswersOfHostileGuest has figures and words that make no sense made sane.
func TestAnswersOfHostileGuest(t *testing.T) {
	mux := sane()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"cpu":-3,"uptime":-1,"load":[-1,2,3],"memory":{"total":-5,"used":7},"root":{"total":10,"used":99},"work":{"total":1,"used":-1},"net_sent":-1,"processes":-1}`)
	})
	mux.HandleFunc("GET /ports", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `[{"protocol":"tcp","address":"::","port":22,"pid":-4,"process":"ss\u001b[2Jhd\n%s"},{"protocol":"evil","address":"::","port":1},
			{"protocol":"udp","address":"not one","port":1},{"protocol":"udp","address":"fe80::1%%evil","port":1},{"protocol":"udp","address":"::","port":0}]`, strings.Repeat("x", 200))
	})
	mux.HandleFunc("GET /stat", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, map[string]string{
			"/kind": `{"path":"/kind","kind":"evil"}`, "/relative": `{"path":"../..","kind":"file"}`, "/size": `{"path":"/size","kind":"file","size":-1}`,
			"/endless": `{"path":"` + strings.Repeat("x", 5<<20),
		}[r.URL.Query().Get("path")])
	})
	c := connected(t, mux)
	s, err := c.Stats(t.Context())
	if err != nil || s.CPU != 0 || s.Uptime != 0 || s.Load != [3]float64{0, 2, 3} || s.Memory != (api.Usage{}) || s.Root.Used != 10 || s.Work.Used != 0 || s.NetSent != 0 || s.Processes != 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	ports, err := c.Ports(t.Context())
	if err != nil || len(ports) != 1 || ports[0].PID != 0 || !strings.HasPrefix(ports[0].Process, "ss[2Jhdxx") || len(ports[0].Process) > 64 {
		t.Errorf("ports %+v, %v", ports, err)
	}
	for _, path := range []string{"/kind", "/relative", "/size", "/endless"} {
		if f, err := c.Stat(t.Context(), path, false); api.CodeOf(err) != api.CodeGuest {
			t.Errorf("stat %s: %+v, %v", path, f, err)
		}
	}
	if err := c.WriteFiles(t.Context(), api.WriteFiles{Path: "/x"}, strings.NewReader("archive")); api.CodeOf(err) != api.CodeGuest || !strings.Contains(err.Error(), "too old") {
		t.Errorf("an agent without files: %v", err)
	}
}
