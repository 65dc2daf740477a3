package vmm

import (
	"context"
	"strings"
	"testing"

	"banger/api"
)

// engine is a driver that only says whether it serves.
type engine struct {
	Driver
	name string
	err  error
}

func (e engine) Name() string { return e.name }

func (e engine) Check(context.Context) (Info, error) { return Info{Accel: "kvm"}, e.err }

func TestChoose(t *testing.T) {
	not := api.Errorf(api.CodeUnavailable, "look for it: it is\nnot there").WithHint("get it")
	for _, tc := range []struct {
		name    string
		engines Engines
		want    api.VMM
		is, why string // or the error
	}{
		{"first", Engines{engine{name: "a"}, engine{name: "b"}}, api.VMMAuto, "a/kvm", "first choice"},
		{"nothing said", Engines{engine{name: "a"}, engine{name: "b"}}, "", "a/kvm", "first choice"},
		{"second", Engines{engine{name: "a", err: not}, engine{name: "b"}}, api.VMMAuto, "b/kvm", "not a: look for it: it is; not there"},
		{"asked for", Engines{engine{name: "a"}, engine{name: "b"}}, "b", "b/kvm", "asked for"},
		{"asked for in vain", Engines{engine{name: "a", err: not}, engine{name: "b"}}, "a", "", "not there"},
		{"unknown", Engines{engine{name: "a"}}, "c", "", `no driver for "c"`},
		{"none", Engines{engine{name: "a", err: not}, engine{name: "b", err: not}}, api.VMMAuto, "", "choose a VMM"},
		{"no drivers", nil, api.VMMAuto, "", "there is none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.engines.Choose(t.Context(), tc.want)
			if tc.is == "" {
				if err == nil || !strings.Contains(err.Error(), tc.why) {
					t.Errorf("got %v, want %q", err, tc.why)
				}
				return
			}
			if err != nil || got.String() != tc.is || !strings.Contains(got.Why, tc.why) || strings.Contains(got.Why, "\n") {
				t.Errorf("got %s, %q, %v; want %s, %q", got, got.Why, err, tc.is, tc.why)
			}
		})
	}
}
