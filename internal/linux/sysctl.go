package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/failpoint"
)

func sysctlPath(key string) string { return filepath.Join("/proc/sys", filepath.FromSlash(key)) }

// Sysctl returns the value of a parameter of the kernel, or of the caller's network
// namespace, by its path below /proc/sys, such as net/ipv4/ip_forward.
func Sysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlPath(key))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SetSysctl sets a parameter.
func SetSysctl(key, value string) error {
	err := os.WriteFile(sysctlPath(key), []byte(value), 0o644)
	if err == nil {
		err = failpoint.Pass("sysctl", "set")
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", key, value, err)
	}
	return nil
}
