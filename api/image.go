package api

import "time"

// ImageConfig is what an image says of how it is to be run; see the OCI Image
// Configuration, "config", and for the health check Docker's.
type ImageConfig struct {
	User         string            `json:"user,omitempty" doc:"Whom its commands run as: a name or a uid in the guest, with :group or :gid; root where it is empty."`
	WorkingDir   string            `json:"working_dir,omitempty" doc:"The directory that they run in; the user's home where it is empty."`
	Env          []string          `json:"env,omitempty" doc:"NAME=value for their environment."`
	Entrypoint   []string          `json:"entrypoint,omitempty" doc:"The beginning of the image's own command."`
	Cmd          []string          `json:"cmd,omitempty" doc:"The rest of it."`
	StopSignal   string            `json:"stop_signal,omitempty" doc:"What asks that command to end; TERM where it is empty."`
	ExposedPorts []string          `json:"exposed_ports,omitempty" doc:"The ports at which it serves, e.g. 80/tcp."`
	Healthcheck  *Healthcheck      `json:"healthcheck,omitempty" doc:"How to find out whether it does."`
	Labels       map[string]string `json:"labels,omitempty" doc:"What else it says of itself."`
}

// Command is the image's own command; empty where it has none.
func (c ImageConfig) Command() []string {
	return append(append([]string(nil), c.Entrypoint...), c.Cmd...)
}

// ImageHistory is a step in the making of an image.
type ImageHistory struct {
	Created   *time.Time `json:"created,omitempty" doc:"When it was made, where that is known."`
	CreatedBy string     `json:"created_by,omitempty" doc:"The command that made it."`
	Comment   string     `json:"comment,omitempty" doc:"What the maker said."`
	Layer     string     `json:"layer,omitempty" doc:"The layer that it made; empty where it made none."`
	Size      int64      `json:"size" doc:"Bytes that the layer takes on the disk."`
}

// TagImage asks for another name of an image.
type TagImage struct {
	Name string `json:"name" doc:"The name. An image of the caller's that has it loses it." match:"^[!-~]{1,400}$"`
}

// PruneImages asks for images of the caller's, of root's all, of which there is no VM to
// be removed.
type PruneImages struct {
	All       bool    `json:"all,omitempty" doc:"Also those that have a name, not only what has lost it to a newer image."`
	Keep      int64   `json:"keep,omitempty" doc:"With all: remove the least recently used, until those that stay take no more than so many bytes; 0 for all." min:"0"`
	UnusedFor float64 `json:"unused_for,omitempty" doc:"Only those that no VM has been made of for so many seconds." min:"0"`
	DryRun    bool    `json:"dry_run,omitempty" doc:"Only say what would be removed."`
}

// Healthcheck is a command that is run in a guest again and again.
type Healthcheck struct {
	Test        []string `json:"test" doc:"The command: CMD and its words, or CMD-SHELL and a line for the image's shell."`
	Interval    float64  `json:"interval" doc:"Seconds from the end of one run to the next."`
	Timeout     float64  `json:"timeout" doc:"Seconds after which one is killed and counts as failed."`
	StartPeriod float64  `json:"start_period" doc:"Seconds after the start in which failures do not count."`
	Retries     int      `json:"retries" doc:"Failures in a row that make a VM unhealthy."`
}

// HealthStatus is what a health check says.
type HealthStatus string

// The results of health checks.
const (
	HealthStarting  HealthStatus = "starting"
	HealthHealthy   HealthStatus = "healthy"
	HealthUnhealthy HealthStatus = "unhealthy"
)

// Health is what the health check of a VM's image has found. It is the guest's word.
type Health struct {
	Status  HealthStatus `json:"status" enum:"starting,healthy,unhealthy" doc:"Starting until the first success, or until failures count."`
	Failing int          `json:"failing" doc:"Failures in a row until now."`
	Exit    int          `json:"exit" doc:"Exit status of the last run; -1 where it was killed or could not be started."`
	Output  string       `json:"output,omitempty" doc:"What the last run printed, some KiB of it."`
	Checked *time.Time   `json:"checked,omitempty" doc:"When that was."`
}
