package api

// IO is what a VM's disks may do together, by the second. What is 0 has no limit.
type IO struct {
	ReadBPS   int64 `json:"read_bps,omitempty" doc:"Bytes read." min:"0"`
	WriteBPS  int64 `json:"write_bps,omitempty" doc:"Bytes written." min:"0"`
	ReadIOPS  int64 `json:"read_iops,omitempty" doc:"Reads." min:"0"`
	WriteIOPS int64 `json:"write_iops,omitempty" doc:"Writes." min:"0"`
}
