package firecracker

// The bodies of requests and answers, as far as the driver uses them; the API's own
// description is src/firecracker/swagger/firecracker.yaml in Firecracker's repository.
type (
	versionInfo struct {
		Version string `json:"firecracker_version"`
	}
	instanceInfo struct {
		State string `json:"state"`
	}
	serial struct {
		Limit *tokenBucket `json:"rate_limiter,omitempty"`
	}
	machineConfig struct {
		CPUs      int    `json:"vcpu_count"`
		MiB       int64  `json:"mem_size_mib"`
		HugePages string `json:"huge_pages,omitempty"`
	}
	bootSource struct {
		Kernel string `json:"kernel_image_path"`
		Initrd string `json:"initrd_path"`
		Args   string `json:"boot_args"`
	}
	drive struct {
		ID        string       `json:"drive_id"`
		Path      string       `json:"path_on_host"`
		Root      bool         `json:"is_root_device"`
		ReadOnly  bool         `json:"is_read_only"`
		CacheType string       `json:"cache_type"`
		Engine    string       `json:"io_engine"`
		Limit     *rateLimiter `json:"rate_limiter,omitempty"`
	}
	driveUpdate struct {
		ID   string `json:"drive_id"`
		Path string `json:"path_on_host"`
	}
	networkInterface struct {
		ID      string       `json:"iface_id"`
		Tap     string       `json:"host_dev_name"`
		MAC     string       `json:"guest_mac"`
		MTU     int          `json:"mtu,omitempty"`
		RxLimit *rateLimiter `json:"rx_rate_limiter,omitempty"`
		TxLimit *rateLimiter `json:"tx_rate_limiter,omitempty"`
	}
	vsockDevice struct {
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	entropy struct{}
	balloon struct {
		MiB          int  `json:"amount_mib"`
		DeflateOnOOM bool `json:"deflate_on_oom"`
		Interval     int  `json:"stats_polling_interval_s"`
	}
	action struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		State    string            `json:"snapshot_path"`
		Memory   memoryBackend     `json:"mem_backend"`
		Networks []networkOverride `json:"network_overrides,omitempty"`
		Vsock    *vsockOverride    `json:"vsock_override,omitempty"`
		Resume   bool              `json:"resume_vm"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	networkOverride struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
	}
	vsockOverride struct {
		Path string `json:"uds_path"`
	}
	rateLimiter struct {
		Bandwidth *tokenBucket `json:"bandwidth,omitempty"`
		Ops       *tokenBucket `json:"ops,omitempty"`
	}
	tokenBucket struct {
		Size   int64 `json:"size"`
		Refill int64 `json:"refill_time"` // milliseconds
		Burst  int64 `json:"one_time_burst,omitempty"`
	}
)

// Rate is what may pass in a second; what is 0 has no limit.
type Rate struct {
	Bytes, Ops int64
}

func (r Rate) limiter() *rateLimiter {
	if r == (Rate{}) {
		return nil
	}
	bucket := func(n int64) *tokenBucket {
		if n == 0 {
			return nil
		}
		return &tokenBucket{Size: n, Refill: 1000}
	}
	return &rateLimiter{Bandwidth: bucket(r.Bytes), Ops: bucket(r.Ops)}
}
