package api

// Stats says what a running VM uses.
type Stats struct {
	VM         string      `json:"vm" doc:"The VM's id."`
	Name       string      `json:"name" doc:"The VM's name."`
	Guest      *GuestStats `json:"guest,omitempty" doc:"What the guest says of itself; absent where it does not answer."`
	GuestError string      `json:"guest_error,omitempty" doc:"Why the guest's figures are absent."`
	Host       HostStats   `json:"host" doc:"What the VM takes of the host."`
}

// GuestStats are a guest's own figures.
type GuestStats struct {
	Uptime      float64    `json:"uptime" doc:"Seconds since the guest's kernel started."`
	CPUs        int        `json:"cpus" doc:"Number of its CPUs."`
	CPU         float64    `json:"cpu" doc:"How busy its CPUs were during a fifth of a second; 1 is all of them."`
	Load        [3]float64 `json:"load" doc:"Load averages of 1, 5 and 15 minutes, see proc_loadavg(5)."`
	Memory      Usage      `json:"memory" doc:"Its memory; what can be reclaimed at once is not counted as used."`
	Swap        Usage      `json:"swap" doc:"Its swap space."`
	Root        Usage      `json:"root" doc:"Its root file system, without what comes from the image."`
	Work        *Usage     `json:"work,omitempty" doc:"The file system of its work disk, where it has one."`
	NetReceived int64      `json:"net_received" doc:"Bytes received by its network interfaces, the loopback interface apart."`
	NetSent     int64      `json:"net_sent" doc:"Bytes that these sent."`
	Processes   int        `json:"processes" doc:"Number of its processes."`
}

// Usage is how much there is of something and how much of that is used.
type Usage struct {
	Total int64 `json:"total" doc:"Bytes."`
	Used  int64 `json:"used" doc:"Bytes."`
}

// HostStats are what the host knows of a VM, whatever its guest says.
type HostStats struct {
	CPU    float64 `json:"cpu" doc:"Seconds of CPU time that the VMM has used since the VM's start."`
	Memory int64   `json:"memory" doc:"Bytes of the host's memory that the VMM has now."`
	Disk   int64   `json:"disk" doc:"Bytes that the VM's own files take on the host's disk."`
}

// Port is a socket of a VM at which something listens, or a port that its image exposes.
type Port struct {
	Protocol string `json:"protocol" enum:"tcp,udp" doc:"The protocol."`
	Address  string `json:"address" doc:"The address that it is bound to; 0.0.0.0 or :: for any. Empty where nothing listens."`
	Port     uint16 `json:"port" doc:"The port's number."`
	Exposed  bool   `json:"exposed" doc:"Whether it is a port that the image exposes."`
	PID      int    `json:"pid,omitempty" doc:"A process in the VM that has the socket, where there is one."`
	Process  string `json:"process,omitempty" doc:"The name of that process."`
}
