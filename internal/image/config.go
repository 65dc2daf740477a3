package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/api"
)

const (
	// maxRunConfig bounds what a guest is told of its image, in bytes of JSON.
	maxRunConfig = 256 << 10
	// maxPorts bounds how many ports an image exposes, those of ranges apart.
	maxPorts = 1000

	defaultInterval = 30 * time.Second
	defaultRetries  = 3
	minInterval     = 100 * time.Millisecond
	maxInterval     = 24 * time.Hour
)

// imageConfig is what is used of the config of an OCI image; see the OCI Image
// Configuration.
type imageConfig struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Config       *runConfig    `json:"config,omitempty"`
	History      []historyLine `json:"history,omitempty"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// runConfig is its part that says how the image is to be run.
type runConfig struct {
	User         string              `json:",omitempty"`
	WorkingDir   string              `json:",omitempty"`
	Env          []string            `json:",omitempty"`
	Entrypoint   words               `json:",omitempty"`
	Cmd          words               `json:",omitempty"`
	StopSignal   string              `json:",omitempty"`
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Labels       map[string]string   `json:",omitempty"`
	Shell        []string            `json:",omitempty"`
	Healthcheck  *struct {
		Test        words         `json:",omitempty"`
		Interval    time.Duration `json:",omitempty"`
		Timeout     time.Duration `json:",omitempty"`
		StartPeriod time.Duration `json:",omitempty"`
		Retries     int           `json:",omitempty"`
	} `json:",omitempty"`
}

type historyLine struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

// words is a list that images of old have as one string.
type words []string

func (w *words) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*w = nil
		if one != "" {
			*w = words{one}
		}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(w))
}

var (
	exposedPort = regexp.MustCompile(`^([0-9]{1,5})(-[0-9]{1,5})?(/(tcp|udp|sctp))?$`)
	stopSignal  = regexp.MustCompile(`^[A-Z0-9+-]{1,16}$`)
)

// parseConfig reads a config.
func parseConfig(data []byte) (c imageConfig, err error) {
	switch {
	case len(data) > maxConfig:
		return c, api.Errorf(api.CodeInvalid, "image config: it has more than %d bytes", maxConfig)
	case len(data) == 0: // of an image of an earlier version
		return c, nil
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, api.Errorf(api.CodeInvalid, "image config: %w", err)
	}
	return c, nil
}

// run is how the image is to be run, in order and bounded. What makes no sense and does
// no harm is left out.
func (c imageConfig) run() (api.ImageConfig, error) {
	r := c.Config
	if r == nil {
		return api.ImageConfig{}, nil
	}
	out := api.ImageConfig{User: r.User, WorkingDir: r.WorkingDir, Entrypoint: r.Entrypoint, Cmd: r.Cmd, Labels: r.Labels}
	for _, e := range r.Env {
		if name, _, ok := strings.Cut(e, "="); ok && name != "" {
			out.Env = append(out.Env, e)
		}
	}
	if signal := strings.TrimPrefix(strings.ToUpper(r.StopSignal), "SIG"); stopSignal.MatchString(signal) {
		out.StopSignal = signal
	}
	for port := range r.ExposedPorts {
		if m := exposedPort.FindStringSubmatch(port); m != nil && len(out.ExposedPorts) < maxPorts {
			out.ExposedPorts = append(out.ExposedPorts, m[1]+m[2]+"/"+cmp.Or(m[4], "tcp"))
		}
	}
	slices.SortFunc(out.ExposedPorts, func(a, b string) int {
		return cmp.Or(cmp.Compare(firstPort(a), firstPort(b)), strings.Compare(a, b))
	})
	out.ExposedPorts = slices.Compact(out.ExposedPorts)
	if h := r.Healthcheck; h != nil && len(h.Test) > 1 && (h.Test[0] == "CMD" || h.Test[0] == "CMD-SHELL") { // else it is NONE
		test := []string(h.Test)
		if test[0] == "CMD-SHELL" && len(r.Shell) > 0 {
			test = slices.Concat([]string{"CMD"}, r.Shell, test[1:])
		}
		out.Healthcheck = &api.Healthcheck{
			Test: test, Interval: seconds(h.Interval, defaultInterval), Timeout: seconds(h.Timeout, defaultInterval),
			StartPeriod: min(max(h.StartPeriod, 0), maxInterval).Seconds(), Retries: defaultRetries,
		}
		if h.Retries > 0 {
			out.Healthcheck.Retries = h.Retries
		}
	}
	told, err := json.Marshal(out)
	switch {
	case err != nil:
		return out, err
	case len(told) > maxRunConfig:
		return out, api.Errorf(api.CodeInvalid, "image config: how it is to be run takes more than %d bytes", maxRunConfig)
	case bytes.Contains(told, []byte(`\u0000`)):
		return out, api.Errorf(api.CodeInvalid, "image config: there is a NUL in how it is to be run")
	}
	return out, nil
}

func firstPort(s string) int {
	n, _ := strconv.Atoi(s[:strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })]) // as exposedPort has it
	return n
}

func seconds(d, otherwise time.Duration) float64 {
	if d <= 0 {
		d = otherwise
	}
	return min(max(d, minInterval), maxInterval).Seconds()
}

// Run is how an image is to be run.
func (i Image) Run() api.ImageConfig {
	c, err := parseConfig([]byte(i.Config))
	if err != nil {
		return api.ImageConfig{} // of a database that somebody else has written to
	}
	run, err := c.run()
	if err != nil {
		return api.ImageConfig{}
	}
	return run
}

// Platform is the system and the machine that an image is for.
func (i Image) Platform() (system, arch string) {
	c, err := parseConfig([]byte(i.Config))
	if err != nil {
		return "linux", ""
	}
	return cmp.Or(c.OS, "linux"), c.Architecture
}

// runs says whether programs for a machine run on this one. Kernels for amd64 run those
// of its predecessor.
func runs(arch string) bool {
	return arch == "" || arch == runtime.GOARCH || arch == "386" && runtime.GOARCH == "amd64"
}

// Usable refuses an image that is for another machine.
func (i Image) Usable() error {
	if _, arch := i.Platform(); !runs(arch) {
		return api.Errorf(api.CodeUnsupported, "image %q is for %s, this host runs linux/%s", i.Name, quote("linux/"+arch), runtime.GOARCH).
			WithHint("banger image pull --platform linux/%s gets the one for this host, where there is one", runtime.GOARCH)
	}
	return nil
}

// RunConfig is how the image id is to be run; nothing where there is no such image.
func (m *Manager) RunConfig(ctx context.Context, id string) (api.ImageConfig, error) {
	img, err := m.byID(ctx, id)
	if api.CodeOf(err) == api.CodeNotFound {
		return api.ImageConfig{}, nil
	}
	return img.Run(), err
}
