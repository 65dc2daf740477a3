package agent

import (
	"context"
	"net/http"
	"reflect"
	"strconv"
	"sync"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/guest/wire"
	"banger/internal/linux"
)

const (
	maxHealthOutput = 4 << 10 // bytes that are kept of what a check prints
	// startInterval is the longest pause between checks in the start period, as with
	// other tools.
	startInterval = 5 * time.Second
)

// healthCheck runs the health check of the image again and again.
type healthCheck struct {
	image api.ImageConfig
	end   context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever anything below changes
	seq     int64
	health  api.Health
}

// of says whether it is that of an image.
func (h *healthCheck) of(c api.ImageConfig) bool { return reflect.DeepEqual(h.image, c) }

func startHealthCheck(c api.ImageConfig) *healthCheck {
	ctx, cancel := context.WithCancel(context.Background())
	h := &healthCheck{image: c, end: cancel, changed: make(chan struct{}), seq: 1, health: api.Health{Status: api.HealthStarting}}
	go h.run(ctx)
	return h
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (h *healthCheck) run(ctx context.Context) {
	c := h.image.Healthcheck
	started := time.Now()
	for {
		starting := time.Since(started) < inSeconds(c.StartPeriod)
		pause := inSeconds(c.Interval)
		if starting && h.health.Status == api.HealthStarting {
			pause = min(pause, startInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		exit, output := h.probe(inSeconds(c.Timeout))
		h.found(exit, output, time.Since(started) < inSeconds(c.StartPeriod))
	}
}

// found takes the result of one run. In the start period failures do not count, unless
// there has been a success already.
func (h *healthCheck) found(exit int, output string, starting bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	next := api.Health{Status: h.health.Status, Failing: h.health.Failing, Exit: exit, Output: output, Checked: &now}
	switch {
	case exit == 0:
		next.Status, next.Failing = api.HealthHealthy, 0
	case starting && next.Status == api.HealthStarting:
	default:
		if next.Failing++; next.Failing >= h.image.Healthcheck.Retries {
			next.Status = api.HealthUnhealthy
		}
	}
	h.health = next
	h.seq++
	close(h.changed)
	h.changed = make(chan struct{})
}

// probe runs the check once; exit is -1 where it was killed or did not start.
func (h *healthCheck) probe(timeout time.Duration) (exit int, output string) {
	spec, err := complete(api.ExecSpec{}, h.image)
	if err != nil {
		return -1, err.Error()
	}
	test := h.image.Healthcheck.Test
	spec.Command = test[1:]
	if test[0] == "CMD-SHELL" {
		spec.Command = append([]string{"/bin/sh", "-c"}, test[1:]...)
	}
	u, err := findUser(spec.User)
	if err != nil {
		return -1, err.Error()
	}
	cmd, err := newCommand(spec, u)
	if err != nil {
		return -1, err.Error()
	}
	streams, err := connect(cmd, spec)
	if err != nil {
		return -1, err.Error()
	}
	defer streams.closeOurs()
	err = cmd.Start()
	streams.closeChild()
	if err != nil {
		return -1, err.Error()
	}
	var text tail
	ended := make(chan struct{})
	var outputs sync.WaitGroup
	for _, o := range streams.outputs {
		outputs.Go(func() { pump(o.file, ended, text.add) })
	}
	kill := time.AfterFunc(timeout, func() { _ = linux.Signal(cmd.Process.Pid, "KILL") })
	_ = linux.AwaitExit(cmd.Process.Pid)
	inTime := kill.Stop()
	_ = cmd.Wait() // the status is read below
	close(ended)
	for _, o := range streams.outputs {
		_ = o.file.SetReadDeadline(time.Now().Add(outputGrace))
	}
	outputs.Wait()
	exit = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !inTime && ok && ws.Signaled() {
		text.add([]byte("\nthe check took longer than " + timeout.String()))
	}
	return exit, text.String()
}

// tail is the end of what a check prints.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) add(b []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	t.text = t.text[max(0, len(t.text)-maxHealthOutput):]
	return true
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// imageHealth is GET /image-health: what the check has found, when it has found
// something else than at ?after=, or after a while.
func (i *image) imageHealth(w http.ResponseWriter, r *http.Request) {
	h := i.check()
	if h == nil {
		answer(w, wire.ImageHealth{})
		return
	}
	after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64) // what is no number is before all
	deadline := time.After(wire.HealthWait)
	for {
		h.mu.Lock()
		health, seq, changed := h.health, h.seq, h.changed
		h.mu.Unlock()
		wait := seq == after
		if wait {
			select {
			case <-changed:
				continue
			case <-deadline:
			case <-r.Context().Done():
			}
		}
		answer(w, wire.ImageHealth{Seq: seq, Health: &health})
		return
	}
}
