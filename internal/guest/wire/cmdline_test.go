package wire

import (
	"reflect"
	"testing"
)

func TestCmdlineRoundTrip(t *testing.T) {
	for name, b := range map[string]Boot{
		"least": {Layers: []string{"vda"}, Upper: "vdb"},
		"all": {
			Layers: []string{"vda", "vdb", "vdc"}, Upper: "vdd", Modules: "vde", Work: "vdf", Sync: "0123456789abcdef0123456789abcdef",
			Hostname: "api", MachineID: "fedcba9876543210fedcba9876543210", Init: true, Vsock: true,
		},
		"one disk":     {Root: "vda", Modules: "vdb"},
		"to be filled": {Layers: []string{"vda", "vdb"}, Fill: "vdc"},
		"equals signs": {Layers: []string{"a=b", "="}, Upper: "banger.upper=x", Sync: "="},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseBoot("console=ttyS0 quiet " + b.Cmdline() + " banger.unknown=1\n")
			if err != nil || !reflect.DeepEqual(got, b) {
				t.Errorf("got %+v, %v; want %+v", got, err, b)
			}
		})
	}
}

func TestParseBootRefuses(t *testing.T) {
	for _, cmdline := range []string{
		"", "quiet", "banger.layers=vda", "banger.upper=vdb", "banger.layers= banger.upper=vdb", "banger.layers=vda,,vdc banger.upper=vdb",
		"banger.layers=vda, banger.upper=vdb", "banger.layers banger.upper", "banger.layers=vda banger.upper=", "xbanger.layers=vda xbanger.upper=vdb",
		"banger.root=vda banger.upper=vdb", "banger.root=vda banger.layers=vdb", "banger.root=", "banger.fill=vda",
		"banger.layers=vda banger.upper=vdb banger.fill=vdc",
	} {
		if b, err := ParseBoot(cmdline); err == nil {
			t.Errorf("%q was taken for %+v", cmdline, b)
		}
	}
}

func FuzzParseBoot(f *testing.F) {
	f.Add("quiet banger.layers=vda,vdb banger.upper=vdc banger.sync=00 banger.init=0")
	f.Add("banger.layers=vda banger.layers=,, banger.upper==")
	f.Add("\x00banger.upper=\u00a0 banger.layers=\x85")
	f.Fuzz(func(t *testing.T, cmdline string) {
		b, err := ParseBoot(cmdline)
		if err != nil {
			return
		}
		again, err := ParseBoot(b.Cmdline())
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Errorf("%+v became %+v, %v", b, again, err)
		}
	})
}
