package agent

import (
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/linux"
)

// mainPatience is how long the image's own command has after its stop signal where the
// host does not say how long it waits.
const mainPatience = 2 * time.Second

// image is what the host has told of the VM's image.
type image struct {
	mu     sync.Mutex
	config api.ImageConfig
	health *healthCheck // nil: the image has none
}

// configure takes what the host says. A health check that is under way goes on where
// nothing has changed.
func (i *image) configure(c api.ImageConfig) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.health != nil && i.health.of(c) {
		return
	}
	if i.health != nil {
		i.health.end()
		i.health = nil
	}
	i.config = c
	if c.Healthcheck != nil {
		i.health = startHealthCheck(c)
	}
}

func (i *image) now() api.ImageConfig {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.config
}

func (i *image) check() *healthCheck {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.health
}

// complete fills in what a command leaves to its image. The image's directory is made
// where it is missing, as other tools do.
func complete(spec api.ExecSpec, c api.ImageConfig) (api.ExecSpec, error) {
	if spec.Image {
		if spec.Command = c.Command(); len(spec.Command) == 0 {
			return spec, api.Errorf(api.CodeInvalid, "exec: the image has no command").WithHint("give one")
		}
	}
	if spec.User == "" {
		spec.User = c.User
	}
	if spec.Dir == "" && c.WorkingDir != "" {
		spec.Dir = path.Join("/", c.WorkingDir)
		_ = os.MkdirAll(spec.Dir, 0o755) // where it cannot be made the command says so
	}
	spec.Env = slices.Concat(c.Env, spec.Env)
	return spec, nil
}

// stopMain asks the commands for which the VM is there to end, by the image's stop
// signal, and waits for it until the deadline.
func (ss *sessions) stopMain(deadline time.Time) {
	signal := linux.SignalNumber(ss.image.now().StopSignal)
	var asked []*session
	ss.mu.Lock()
	for _, s := range ss.byID {
		s.mu.Lock()
		if s.main && s.pgid != 0 && linux.SignalProcess(s.pgid, signal) == nil {
			asked = append(asked, s)
		}
		s.mu.Unlock()
	}
	ss.mu.Unlock()
	for _, s := range asked {
		over := make(chan struct{})
		timer := time.AfterFunc(time.Until(deadline), func() { close(over) })
		s.await(over, func() bool { return s.pgid == 0 })
		timer.Stop()
	}
}

// mainDeadline is until when the image's command may take to end, if the host waits so
// long for the VM's end: what comes after it has its own time.
func mainDeadline(patience time.Duration) time.Time {
	if patience == 0 {
		return time.Now().Add(mainPatience)
	}
	return time.Now().Add(patience - forceReserve - termGrace)
}
