package vm

import (
	"slices"
	"testing"

	"banger/api"
)

func TestExposedPorts(t *testing.T) {
	listening := []api.Port{{Protocol: "tcp", Port: 80, Address: "0.0.0.0"}, {Protocol: "tcp", Port: 80, Address: "::"}, {Protocol: "udp", Port: 443, Address: "::"}}
	got := withExposed(listening, []string{"80/tcp", "443/tcp", "8000-8001/udp", "7/sctp", "1-65535/tcp", "99999/tcp", "9-7/tcp"})
	at := slices.DeleteFunc(slices.Clone(got), func(p api.Port) bool { return p.Port < 200 && p.Port != 80 })
	want := []api.Port{
		{Protocol: "tcp", Port: 80, Address: "0.0.0.0", Exposed: true}, {Protocol: "tcp", Port: 80, Address: "::", Exposed: true},
		{Protocol: "udp", Port: 443, Address: "::"}, {Protocol: "tcp", Port: 443, Exposed: true},
		{Protocol: "udp", Port: 8000, Exposed: true}, {Protocol: "udp", Port: 8001, Exposed: true},
	}
	if !slices.Equal(at, want) || len(got) != len(want)+maxRange-1 {
		t.Errorf("got %d: %+v", len(got), at)
	}
}
