package vm

import (
	"maps"
	"slices"
	"testing"

	"banger/api"

	"pgregory.net/rapid"
)

var events = slices.Sorted(maps.Keys(rules))

var states = append(slices.Clone(always), api.VMDeleting)

// TestLifecycle walks at random: an event leads to a state of the drawing or is
// refused without an effect, and a forced deletion is open from everywhere.
func TestLifecycle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := api.VMStopped
		for range 50 {
			ev := rapid.SampledFrom(events).Draw(t, "event")
			to, err := next(state, ev)
			if err != nil && to != state {
				t.Fatalf("%s in %s is refused and leads to %s", ev, state, to)
			}
			stays := ev == evChange || ev == evPause || ev == evResume || ev == evKill && state == api.VMStopping
			if err == nil && (to == state) != stays {
				t.Fatalf("%s in %s leads to %s", ev, state, to)
			}
			state = to
			if to, err := next(state, evDestroy); state != api.VMDeleting && (err != nil || to != api.VMDeleting) {
				t.Fatalf("delete --force in %s: %s, %v", state, to, err)
			}
		}
	})
}

// TestReachable finds that events lead from a new VM to the states of the drawing, each
// of them, and to no other, and that a user's requests end every one with a deletion.
func TestReachable(t *testing.T) {
	reached := []api.VMState{api.VMStopped}
	for i := 0; i < len(reached); i++ {
		for _, ev := range events {
			if to, err := next(reached[i], ev); err == nil && !slices.Contains(reached, to) {
				reached = append(reached, to)
			}
		}
	}
	slices.Sort(reached)
	if want := slices.Sorted(slices.Values(states)); !slices.Equal(reached, want) {
		t.Errorf("reached %v, want %v", reached, want)
	}
	for _, state := range reached {
		if to, err := next(state, evDestroy); state != api.VMDeleting && (err != nil || to != api.VMDeleting) {
			t.Errorf("delete --force in %s: %s, %v", state, to, err)
		}
	}
	// What is under way comes to an end of its own.
	for from, ends := range map[api.VMState][]event{
		api.VMStarting: {evStarted, evEnded, evSuspended}, api.VMStopping: {evEnded, evUnstop}, api.VMDeleting: {evUndelete},
		api.VMSuspending: {evSuspended, evPaused, evResumed},
	} {
		for _, ev := range ends {
			if to, err := next(from, ev); err != nil || slices.Contains([]api.VMState{api.VMStarting, api.VMStopping, api.VMDeleting, api.VMSuspending}, to) {
				t.Errorf("%s in %s: %s, %v", ev, from, to, err)
			}
		}
	}
}

// TestRefusals says for each request of a user in which states it is taken.
func TestRefusals(t *testing.T) {
	taken := map[event][]api.VMState{
		evStart:   {api.VMStopped, api.VMSuspended},
		evStop:    {api.VMRunning, api.VMStarting, api.VMPaused, api.VMSuspending},
		evKill:    {api.VMRunning, api.VMStarting, api.VMStopping, api.VMPaused, api.VMSuspending, api.VMSuspended},
		evPause:   {api.VMRunning},
		evResume:  {api.VMPaused},
		evSuspend: {api.VMRunning, api.VMPaused},
		evDelete:  {api.VMStopped},
		evChange:  {api.VMStopped, api.VMRunning, api.VMPaused, api.VMSuspended},
	}
	for ev, from := range taken {
		for _, s := range states {
			want := false
			for _, f := range from {
				want = want || f == s
			}
			_, err := next(s, ev)
			if (err == nil) != want {
				t.Errorf("%s in %s: %v", ev, s, err)
			}
			if err != nil && (api.CodeOf(err) != api.CodeConflict || api.AsError(err).Hint == "") {
				t.Errorf("%s in %s: no conflict with a hint: %v", ev, s, err)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	good := api.CreateVM{Name: "api", CPUs: 1, Memory: 512 << 20, RootSize: 1 << 30, DiskSize: new(int64), RootDisk: api.RootDiskOverlay, VMM: api.VMMAuto, Network: api.NetworkNone}
	const host = 1 << 30
	if err := validate("create", good, host); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*api.CreateVM){
		"no name":              func(r *api.CreateVM) { r.Name = "" },
		"capitals":             func(r *api.CreateVM) { r.Name = "API" },
		"a path":               func(r *api.CreateVM) { r.Name = "../api" },
		"ends in a hyphen":     func(r *api.CreateVM) { r.Name = "api-" },
		"no CPUs":              func(r *api.CreateVM) { r.CPUs = 0 },
		"fewer CPUs":           func(r *api.CreateVM) { r.CPUs = -1 },
		"many CPUs":            func(r *api.CreateVM) { r.CPUs = maxCPUs + 1 },
		"little memory":        func(r *api.CreateVM) { r.Memory = 1 << 20 },
		"more than the host":   func(r *api.CreateVM) { r.Memory = host + 1<<20 },
		"a tiny root":          func(r *api.CreateVM) { r.RootSize = 1 },
		"a tiny work disk":     func(r *api.CreateVM) { r.DiskSize = new(int64(1)) },
		"an unknown network":   func(r *api.CreateVM) { r.Network = "wifi" },
		"an unknown VMM":       func(r *api.CreateVM) { r.VMM = "xen" },
		"an unknown root disk": func(r *api.CreateVM) { r.RootDisk = "floppy" },
		"a root without end":   func(r *api.CreateVM) { r.RootSize = 1 << 60 },
		"a name of 64 letters": func(r *api.CreateVM) { r.Name = "a234567890123456789012345678901234567890123456789012345678901234" },
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			spoil(&r)
			if err := validate("create", r, host); err == nil || api.CodeOf(err) != api.CodeInvalid || api.AsError(err).Hint == "" {
				t.Errorf("got %v", err)
			}
		})
	}
}
