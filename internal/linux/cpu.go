package linux

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// CPU returns what the host's first CPU is, for people, and the names of its features,
// sorted; proc_cpuinfo(5).
func CPU() (model string, features []string, err error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "vendor_id", "CPU implementer":
			model = value
		case "cpu family", "model", "model name", "CPU architecture", "CPU part":
			model += " " + value
		case "flags", "Features":
			features = strings.Fields(value)
		}
	}
	if err := lines.Err(); err != nil {
		return "", nil, fmt.Errorf("read /proc/cpuinfo: %w", err)
	}
	slices.Sort(features)
	return model, features, nil
}
