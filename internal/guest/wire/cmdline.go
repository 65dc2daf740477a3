package wire

import (
	"fmt"
	"slices"
	"strings"
)

// Boot is what the kernel command line tells the agent.
type Boot struct {
	Layers  []string // devices of the image's layers, lowest first, e.g. "vda"
	Upper   string   // device of the writable upper disk
	Modules string   // device of the disk with all modules of the kernel; may be empty
	Work    string   // device of the work disk; may be empty
	Sync    string   // 32 hexadecimal digits: the secret of the serial channel's handshake

	Hostname  string
	MachineID string // 32 hexadecimal digits
	Init      bool   // hand process 1 over to the image's own init
}

// Cmdline renders b as words of a kernel command line.
func (b Boot) Cmdline() string {
	words := []string{
		"banger.layers=" + strings.Join(b.Layers, ","),
		"banger.upper=" + b.Upper,
		"banger.sync=" + b.Sync,
	}
	for _, w := range []struct{ key, value string }{
		{"modules", b.Modules}, {"work", b.Work}, {"hostname", b.Hostname}, {"machine_id", b.MachineID},
	} {
		if w.value != "" {
			words = append(words, "banger."+w.key+"="+w.value)
		}
	}
	if b.Init {
		words = append(words, "banger.init")
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
		case "banger.work":
			b.Work = value
		case "banger.sync":
			b.Sync = value
		case "banger.hostname":
			b.Hostname = value
		case "banger.machine_id":
			b.MachineID = value
		case "banger.init":
			b.Init = true
		}
	}
	if len(b.Layers) == 0 || slices.Contains(b.Layers, "") || b.Upper == "" {
		return Boot{}, fmt.Errorf("kernel command line: banger.layers and banger.upper are needed, got %q", cmdline)
	}
	return b, nil
}
