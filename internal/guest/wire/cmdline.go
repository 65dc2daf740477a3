package wire

import (
	"fmt"
	"slices"
	"strings"
)

// Boot is what the kernel command line tells the agent. The root is made of Layers
// and Upper, or is Root. With Layers and Fill the agent does not use a root but makes
// one.
type Boot struct {
	Layers  []string // devices of the image's layers, lowest first, e.g. "vda"
	Upper   string   // device of the writable upper disk
	Root    string   // device of a disk that is the whole root
	Fill    string   // device of an empty disk that is to have what the layers have
	Modules string   // device of the disk with all modules of the kernel; may be empty
	Work    string   // device of the work disk; may be empty
	Sync    string   // 32 hexadecimal digits: the secret of the serial channel's handshake

	Hostname  string
	MachineID string // 32 hexadecimal digits
	Init      bool   // hand process 1 over to the image's own init
	Vsock     bool   // the channel is vsock, not a virtio-serial port
}

// VsockWord tells of Boot.Vsock.
const VsockWord = "banger.vsock"

// Cmdline renders b as words of a kernel command line.
func (b Boot) Cmdline() string {
	words := []string{"banger.sync=" + b.Sync}
	for _, w := range []struct{ key, value string }{
		{"layers", strings.Join(b.Layers, ",")}, {"upper", b.Upper}, {"root", b.Root}, {"fill", b.Fill},
		{"modules", b.Modules}, {"work", b.Work}, {"hostname", b.Hostname}, {"machine_id", b.MachineID},
	} {
		if w.value != "" {
			words = append(words, "banger."+w.key+"="+w.value)
		}
	}
	if b.Init {
		words = append(words, "banger.init")
	}
	if b.Vsock {
		words = append(words, VsockWord)
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
		case "banger.root":
			b.Root = value
		case "banger.fill":
			b.Fill = value
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
		case VsockWord:
			b.Vsock = true
		}
	}
	roots := 0
	for _, device := range []string{b.Upper, b.Root, b.Fill} {
		if device != "" {
			roots++
		}
	}
	if roots != 1 || (len(b.Layers) == 0) != (b.Root != "") || slices.Contains(b.Layers, "") {
		return Boot{}, fmt.Errorf("kernel command line: banger.root, or banger.layers with banger.upper or banger.fill, is needed, got %q", cmdline)
	}
	return b, nil
}
