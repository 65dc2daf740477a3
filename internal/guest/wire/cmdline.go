package wire

import (
	"fmt"
	"strings"
)

// Boot is what the kernel command line tells the agent.
type Boot struct {
	Layers  []string // devices of the image's layers, lowest first, e.g. "vda"
	Upper   string   // device of the writable upper disk
	Modules string   // device of the disk with all modules of the kernel; may be empty
	Sync    string   // 32 hexadecimal digits: the secret of the serial channel's handshake
}

// Cmdline renders b as words of a kernel command line.
func (b Boot) Cmdline() string {
	words := []string{
		"banger.layers=" + strings.Join(b.Layers, ","),
		"banger.upper=" + b.Upper,
		"banger.sync=" + b.Sync,
	}
	if b.Modules != "" {
		words = append(words, "banger.modules="+b.Modules)
	}
	return strings.Join(words, " ")
}

// ParseBoot finds the words of a Boot in a kernel command line.
func ParseBoot(cmdline string) (Boot, error) {
	var b Boot
	for word := range strings.FieldsSeq(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "banger.layers":
			b.Layers = strings.Split(value, ",")
		case "banger.upper":
			b.Upper = value
		case "banger.modules":
			b.Modules = value
		case "banger.sync":
			b.Sync = value
		}
	}
	if len(b.Layers) == 0 || b.Layers[0] == "" || b.Upper == "" {
		return Boot{}, fmt.Errorf("kernel command line: banger.layers and banger.upper are needed, got %q", cmdline)
	}
	return b, nil
}
