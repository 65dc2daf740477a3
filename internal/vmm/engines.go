package vmm

import (
	"context"
	"errors"
	"strings"

	"banger/api"
)

// Engines are the drivers of a host, the preferred ones first.
type Engines []Driver

// Engine is a driver that was chosen for a machine.
type Engine struct {
	Driver
	Info Info
	Why  string // for people
}

// String names it and what it runs machines by, such as qemu/kvm.
func (e Engine) String() string { return e.Name() + "/" + e.Info.Accel }

// Choose returns the driver called want, or where that is empty the first one that can
// start machines here.
func (e Engines) Choose(ctx context.Context, want api.VMM) (Engine, error) {
	if want != "" && want != api.VMMAuto {
		d, err := e.Named(string(want))
		if err != nil {
			return Engine{}, err
		}
		info, err := d.Check(ctx)
		return Engine{d, info, "asked for"}, err
	}
	var not []string
	var errs []error
	for _, d := range e {
		info, err := d.Check(ctx)
		if err == nil {
			why := "the first choice, which serves here"
			if len(not) > 0 {
				why = strings.Join(not, "; ")
			}
			return Engine{d, info, why}, nil
		}
		if ctx.Err() != nil {
			return Engine{}, err
		}
		errs = append(errs, err)
		not = append(not, "not "+d.Name()+": "+strings.ReplaceAll(api.AsError(err).Message, "\n", "; "))
	}
	if len(errs) == 0 {
		return Engine{}, api.Errorf(api.CodeUnsupported, "choose a VMM: there is none")
	}
	// The last one is the one that every host can have: its hint is the next step.
	last := api.AsError(errs[len(errs)-1])
	return Engine{}, api.Errorf(last.Code, "choose a VMM: %w", errors.Join(errs...)).WithHint("%s", last.Hint)
}

// Named returns the driver of a name.
func (e Engines) Named(name string) (Driver, error) {
	for _, d := range e {
		if d.Name() == name {
			return d, nil
		}
	}
	return nil, api.Errorf(api.CodeUnsupported, "choose a VMM: this banger has no driver for %q", name)
}
