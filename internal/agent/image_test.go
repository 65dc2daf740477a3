package agent

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest/wire"
)

// ran is what a command of a session with an image's configuration printed.
func ran(t *testing.T, c api.ImageConfig, spec api.ExecSpec) string {
	t.Helper()
	img := &image{}
	img.configure(c)
	ss := &sessions{image: img, byID: map[string]*session{}}
	s, err := ss.open(api.ExecOpen{ID: "x", Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	s.await(make(chan struct{}), func() bool { return s.exitSeq != 0 })
	var out strings.Builder
	for _, f := range s.output {
		if f.Type != api.FrameExit {
			out.Write(f.Data)
		}
	}
	s.drop()
	return out.String()
}

func TestImageDefaults(t *testing.T) {
	work := filepath.Join(t.TempDir(), "made", "for it")
	c := api.ImageConfig{
		Env: []string{"A=image", "B=image", "PATH=/usr/bin:/bin"}, WorkingDir: work,
		Entrypoint: []string{"sh", "-c", `echo "$A $B $PATH $(pwd) $*"`, "sh"}, Cmd: []string{"x", "y z"},
	}
	words := func(spec api.ExecSpec) api.ExecSpec {
		spec.Command = c.Command()
		return spec
	}
	for name, run := range map[string]struct {
		spec api.ExecSpec
		want string
	}{
		"the image's":     {api.ExecSpec{Image: true}, "image image /usr/bin:/bin " + work + " x y z\n"},
		"what is given":   {words(api.ExecSpec{}), "image image /usr/bin:/bin " + work + " x y z\n"},
		"options prevail": {words(api.ExecSpec{Env: []string{"B=mine"}, Dir: "/"}), "image mine /usr/bin:/bin / x y z\n"},
	} {
		if got := ran(t, c, run.spec); got != run.want {
			t.Errorf("%s: %q, want %q", name, got, run.want)
		}
	}
	ss := &sessions{image: &image{}, byID: map[string]*session{}}
	if _, err := ss.open(api.ExecOpen{ID: "x", Spec: api.ExecSpec{Image: true}}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("an image without a command: %v", err)
	}
	if os.Getuid() != 0 {
		return // becoming others is root's
	}
	c.User = "1234:56"
	if got := ran(t, c, api.ExecSpec{Command: []string{"sh", "-c", "id -u; id -g"}, Dir: "/"}); got != "1234\n56\n" {
		t.Errorf("as the image's user: %q", got)
	}
	if got := ran(t, c, api.ExecSpec{Command: []string{"id", "-u"}, User: "0", Dir: "/"}); got != "0\n" {
		t.Errorf("as another: %q", got)
	}
	if got := ran(t, api.ImageConfig{WorkingDir: "/proc/none"}, api.ExecSpec{Command: []string{"pwd"}}); !strings.Contains(got, "/proc/none") || !strings.Contains(got, "banger:") {
		t.Errorf("a directory that cannot be made: %q", got)
	}
}

// TestDetached runs a command that nobody waits for, and stops it as the image wants.
func TestDetached(t *testing.T) {
	consoleFile = filepath.Join(t.TempDir(), "console")
	t.Cleanup(func() { consoleFile = "/dev/console" })
	if err := os.WriteFile(consoleFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	img := &image{}
	img.configure(api.ImageConfig{StopSignal: "USR1", Cmd: []string{"sh", "-c", `trap 'echo asked; exit 3' USR1; echo begun; while :; do sleep 0.05; done`}})
	ss := &sessions{image: img, byID: map[string]*session{}}
	s, err := ss.open(api.ExecOpen{ID: "main", Spec: api.ExecSpec{Image: true, Detach: true}})
	if err != nil {
		t.Fatal(err)
	}
	said := func(what string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			text, err := os.ReadFile(consoleFile)
			if err == nil && strings.Contains(string(text), what) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the console has %q, %v", text, err)
			}
		}
	}
	said("begun\n")
	if s.expiry != nil {
		t.Error("it is to be hung up")
	}
	ss.stopMain(time.Now().Add(20 * time.Second))
	if s.pgid != 0 {
		t.Error("it runs on")
	}
	said("asked\n")
	said("banger-agent: the command ended: exit status 3\n")
	s.await(make(chan struct{}), func() bool { return s.exitSeq != 0 })
	s.drop()

	if _, err := ss.open(api.ExecOpen{ID: "none", Spec: api.ExecSpec{Command: []string{"/no/such"}, Detach: true}}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("one that cannot be started: %v", err)
	}
	begun := time.Now()
	deaf, err := ss.open(api.ExecOpen{ID: "deaf", Spec: api.ExecSpec{Command: []string{"sh", "-c", "trap '' USR1; echo deaf; exec sleep 100"}, Detach: true}})
	if err != nil {
		t.Fatal(err)
	}
	said("deaf\n")
	ss.stopMain(time.Now().Add(50 * time.Millisecond))
	if deaf.pgid == 0 {
		t.Errorf("it ended after %v", time.Since(begun))
	}
	if err := deaf.signal("KILL"); err != nil {
		t.Fatal(err)
	}
	deaf.await(make(chan struct{}), func() bool { return deaf.exitSeq != 0 })
	deaf.drop()
}

// asked is what GET /image-health answers.
func asked(t *testing.T, img *image, after int64) wire.ImageHealth {
	t.Helper()
	w := httptest.NewRecorder()
	img.imageHealth(w, httptest.NewRequestWithContext(t.Context(), "GET", "/image-health?after="+strconv.FormatInt(after, 10), nil))
	var h wire.ImageHealth
	if err := json.Unmarshal(w.Body.Bytes(), &h); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHealthCheck(t *testing.T) {
	img := &image{}
	if h := asked(t, img, 0); h.Health != nil {
		t.Errorf("without a check: %+v", h)
	}
	ok := filepath.Join(t.TempDir(), "ok")
	c := api.ImageConfig{WorkingDir: "/", Env: []string{"SAY=is it there"}, Healthcheck: &api.Healthcheck{
		Test: []string{"CMD-SHELL", `echo "$SAY"; test -e ` + ok}, Interval: 0.1, Timeout: 10, Retries: 2,
	}}
	img.configure(c)
	defer img.configure(api.ImageConfig{})
	h := asked(t, img, 0)
	first := img.check()
	if h.Health.Status != api.HealthStarting {
		t.Errorf("at first: %+v", h.Health)
	}
	become := func(want api.HealthStatus) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); h.Health.Status != want; {
			if h = asked(t, img, h.Seq); time.Now().After(end) {
				t.Fatalf("it does not become %s: %+v", want, h.Health)
			}
		}
	}
	become(api.HealthUnhealthy)
	if h.Health.Failing < 2 || h.Health.Exit != 1 || h.Health.Output != "is it there\n" || h.Health.Checked == nil {
		t.Errorf("unhealthy: %+v", h.Health)
	}
	if err := os.WriteFile(ok, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	become(api.HealthHealthy)
	img.configure(c) // as at each connection
	if img.check() != first {
		t.Error("the check was begun anew")
	}
}

func TestHealthCounts(t *testing.T) {
	for name, c := range map[string]struct {
		runs string // s: failed in the start period, f: failed later, o: succeeded
		want api.HealthStatus
	}{
		"start period":               {"sssss", api.HealthStarting},
		"after it":                   {"sssff", api.HealthUnhealthy},
		"one failure":                {"of", api.HealthHealthy},
		"a success between":          {"offofo", api.HealthHealthy},
		"a success begins to count":  {"oss", api.HealthUnhealthy},
		"again in order":             {"ffo", api.HealthHealthy},
		"a success clears the count": {"fof", api.HealthHealthy},
	} {
		h := &healthCheck{image: api.ImageConfig{Healthcheck: &api.Healthcheck{Retries: 2}}, changed: make(chan struct{}), health: api.Health{Status: api.HealthStarting}}
		for _, r := range c.runs {
			exit := 1
			if r == 'o' {
				exit = 0
			}
			h.found(exit, "", r == 's')
		}
		if h.health.Status != c.want {
			t.Errorf("%s: %s, want %s", name, h.health.Status, c.want)
		}
	}
}

func TestProbe(t *testing.T) {
	probe := func(timeout time.Duration, test ...string) (int, string) {
		h := &healthCheck{image: api.ImageConfig{Healthcheck: &api.Healthcheck{Test: test}}}
		return h.probe(timeout)
	}
	if exit, out := probe(time.Minute, "CMD", "sh", "-c", "echo fine; exit 7"); exit != 7 || out != "fine\n" {
		t.Errorf("%d, %q", exit, out)
	}
	if exit, out := probe(time.Minute, "CMD", "/no/such"); exit != -1 || !strings.Contains(out, "/no/such") {
		t.Errorf("one that is not there: %d, %q", exit, out)
	}
	if exit, out := probe(time.Minute, "CMD-SHELL", "yes | head -c 1000000; echo; printf end"); exit != 0 || len(out) != maxHealthOutput || !strings.HasSuffix(out, "end") {
		t.Errorf("much output: %d, %d bytes", exit, len(out))
	}
	if exit, out := probe(100*time.Millisecond, "CMD-SHELL", "sleep 100 & sleep 100"); exit != -1 || !strings.Contains(out, "longer than") {
		t.Errorf("one that hangs: %d, %q", exit, out)
	}
}
