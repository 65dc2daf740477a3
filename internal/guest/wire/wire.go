// Package wire holds what the two ends of the channel between host and guest
// agree on: the kernel command line that tells the agent where its disks are,
// the layout of the initramfs, the handshake that (re)starts a multiplexed
// session on a serial channel, and the bodies of the agent's HTTP routes.
// Of banger's own packages it imports api alone.
package wire

import (
	"net/netip"
	"time"

	"banger/api"
)

// Protocol is the version of the agent's HTTP routes. A daemon serves agents of
// its own version and of MinProtocol and up.
const (
	Protocol    = 2
	MinProtocol = 2
)

// Where the initramfs keeps what the agent loads. ModulesOrder lists the file
// names in ModulesDir, one on a line, each after those that it depends on.
const (
	ModulesDir   = "/modules"
	ModulesOrder = "/modules/order"
)

// SerialPort is the name of the virtio-serial port that is the channel, where that is
// serial.
const SerialPort = "banger.agent"

// The ports of vsock, where the channel is that: at AgentPort the agent listens in the
// guest. To ReadyPort of the host it connects once when it does, for whoever waits.
const (
	AgentPort = 1024
	ReadyPort = 1025
)

// OffWord is what the agent writes to the console of a machine that it cannot switch
// off, before it has it start again instead.
const OffWord = "banger-agent: off"

// Greeting is the answer of POST /configure: what the agent says of itself.
type Greeting struct {
	Protocol int     `json:"protocol"`
	Uptime   float64 `json:"uptime"`  // seconds since the kernel's start
	Started  float64 `json:"started"` // when the agent itself was started, seconds after the kernel; the same for as long as it runs
}

// Configure is the body of POST /configure. It may be sent again at any time;
// zero values leave things as they are.
type Configure struct {
	Hostname  string `json:"hostname,omitempty"`
	MachineID string `json:"machine_id,omitempty"` // 32 hexadecimal digits
	Time      int64  `json:"time,omitempty"`       // nanoseconds since 1970, UTC
	Entropy   []byte `json:"entropy,omitempty"`    // credited to the random pool

	Grow bool `json:"grow,omitempty"` // let the file systems of the VM's own disks fill their disks
	// Grown are the sizes in bytes, by device, of the disks that have grown, of which the
	// guest's kernel hears in its own time.
	Grown map[string]int64 `json:"grown,omitempty"`

	Network *Network `json:"network,omitempty"`
	SSH     *SSH     `json:"ssh,omitempty"`

	Image *api.ImageConfig `json:"image,omitempty"` // how the image is to be run
}

// MaxConfigure bounds Configure, in bytes of JSON.
const MaxConfigure = 1 << 20

// ImageHealth is the answer of GET /image-health.
type ImageHealth struct {
	Seq    int64       `json:"seq"`              // grows with each run
	Health *api.Health `json:"health,omitempty"` // nil: the image has no health check
}

// HealthWait is how long the agent waits for news after ?after=SEQ before it answers
// what it has answered before.
const HealthWait = 8 * time.Second

// Network is what the guest's network interface is to be.
type Network struct {
	MAC     string       `json:"mac"`     // finds the interface
	Address netip.Prefix `json:"address"` // its IPv4 address with the length of the subnet's prefix
	Gateway netip.Addr   `json:"gateway"`
	DNS     []netip.Addr `json:"dns"`
}

// SSH is what the agent's ssh server is given. It is replaced as a whole.
type SSH struct {
	HostKey        string   `json:"host_key"`        // OpenSSH private key, PEM
	AuthorizedKeys []string `json:"authorized_keys"` // each a line as in authorized_keys of sshd(8), without options
}

// PowerOff is the body of POST /poweroff.
type PowerOff struct {
	Patience time.Duration `json:"patience,omitempty"` // how long the host waits before it kills the VM
}

// ProgramRsync is the program of the host's that the agent may ask for.
const ProgramRsync = "rsync"

// Want is a line of the answer to GET /wants, which goes on as long as the request: the
// guest asks for a program of the host's. The host sends it with PUT /lent, as a tar
// archive (see LentProgram), or the Error that keeps it from that.
type Want struct {
	Program string `json:"program"`
}

// The names in the archive of a program that is lent. One that is linked statically is
// LentProgram alone; any other is run as `LentLoader --library-path LentLibraries
// LentProgram ARGUMENTS`.
const (
	LentProgram   = "program"
	LentLoader    = "loader"
	LentLibraries = "lib"
)

// Error is the body of an answer with a status of 400 or more.
type Error struct {
	Message string `json:"message"`
}
