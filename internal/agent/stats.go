package agent

import (
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/archive"
	"banger/internal/linux"
)

// cpuSample is how long the CPUs are watched.
const cpuSample = 200 * time.Millisecond

// stats is GET /stats.
func stats(w http.ResponseWriter, _ *http.Request) {
	s, err := guestStats()
	if err != nil {
		refuse(w, archive.Coded("read statistics", err))
		return
	}
	answer(w, s)
}

func guestStats() (api.GuestStats, error) {
	s := api.GuestStats{CPUs: runtime.NumCPU()}
	busy, all := cpuTime()
	time.Sleep(cpuSample)
	if nowBusy, nowAll := cpuTime(); nowAll > all {
		s.CPU = float64(nowBusy-busy) / float64(nowAll-all)
	}
	s.Uptime = linux.Uptime().Seconds()
	if f := procFields("/proc/loadavg"); len(f) >= len(s.Load) {
		for i := range s.Load {
			s.Load[i], _ = strconv.ParseFloat(f[i], 64)
		}
	}
	memory := memInfo()
	s.Memory = api.Usage{Total: memory["MemTotal"], Used: memory["MemTotal"] - memory["MemAvailable"]}
	s.Swap = api.Usage{Total: memory["SwapTotal"], Used: memory["SwapTotal"] - memory["SwapFree"]}
	s.NetReceived, s.NetSent = netBytes()
	pids, _ := filepath.Glob("/proc/[0-9]*") // the pattern is in order
	s.Processes = len(pids)
	var err error
	if s.Root.Total, s.Root.Used, err = linux.DiskUsage("/"); err != nil {
		return s, err
	}
	if isMounted("/root") {
		s.Work = &api.Usage{}
		s.Work.Total, s.Work.Used, err = linux.DiskUsage("/root")
	}
	return s, err
}

// isMounted tells whether a directory is on another file system than the root.
func isMounted(dir string) bool {
	device := func(path string) uint64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Sys().(*syscall.Stat_t).Dev // on Linux always
	}
	at := device(dir)
	return at != 0 && at != device("/")
}

func procFields(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

// cpuTime returns how long all CPUs were busy, and how long they were there, in
// ticks; proc_stat(5).
func cpuTime() (busy, all int64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line) {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i <= 8 { // guest time is in user time too
			all += n
			if i != 4 && i != 5 { // idle, iowait
				busy += n
			}
		}
	}
	return busy, all
}

// memInfo returns proc_meminfo(5) in bytes.
func memInfo() map[string]int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		key, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) > 0 {
			n, _ := strconv.ParseInt(f[0], 10, 64)
			values[key] = n << 10
		}
	}
	return values
}

// netBytes sums up proc_pid_net(5), dev, for all interfaces but the loopback one.
func netBytes() (received, sent int64) {
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) < 16 {
			continue
		}
		r, _ := strconv.ParseInt(f[0], 10, 64)
		s, _ := strconv.ParseInt(f[8], 10, 64)
		received, sent = received+r, sent+s
	}
	return received, sent
}
