// Package doctor looks at the host and at an installation's things on it, and says of
// each what it is, what it means and what to do. Examine changes nothing; what a repair
// does is Repair's, of which only the daemon that serves is capable.
//
// What takes knowledge of a part of banger, that part checks itself (network.Diagnose,
// resource.Ledger.Check); Config says where to ask.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/config"
	"banger/internal/resource"
	"banger/internal/space"
	"banger/internal/vmm"
)

// patience is what one check is given: a host that hangs is a finding too.
const patience = 15 * time.Second

// rootUID sees everything.
const rootUID = 0

// The groups of findings, in the order in which they are shown.
const (
	groupVMM      = "machines"
	groupHost     = "host"
	groupStorage  = "storage"
	groupNetwork  = "network" // package network's
	groupDatabase = "database"
	groupThings   = "things"
	groupVMs      = "vms"
)

// Config is what is to be examined. What is nil is not.
type Config struct {
	Paths    config.Paths
	Group    string // whose members may use the daemon
	Served   bool   // this process is the daemon that serves
	Drivers  []vmm.Driver
	Room     space.Room
	Network  Network
	Ledger   Ledger
	Database func(context.Context) []api.Finding
	VMs      func(context.Context) ([]api.VM, error) // all
}

// Network is what is needed of package network.
type Network interface {
	Diagnose(context.Context) []api.Finding
}

// Ledger is what is needed of package resource.
type Ledger interface {
	Check(context.Context) ([]resource.Finding, error)
}

// check is a question; of the answers, users other than root see those that are not
// private.
type check struct {
	group   string
	private bool
	ask     func(context.Context) []api.Finding
}

// Examine runs all checks, side by side. Findings are in the order of the checks.
func Examine(ctx context.Context, c Config, caller uint32) []api.Finding {
	checks := []check{
		{groupVMM, false, checkKVM}, {groupVMM, false, c.checkDrivers},
		{groupHost, false, checkDevices}, {groupHost, false, checkCgroups}, {groupHost, false, checkTools},
		{groupStorage, false, c.checkRoom}, {groupStorage, false, c.checkDisk}, {groupStorage, false, c.checkDirectories}, {groupStorage, false, c.checkSocket}, {groupStorage, true, c.checkLost},
	}
	if c.Database != nil {
		checks = append(checks, check{groupDatabase, true, c.Database})
	}
	if c.Network != nil {
		checks = append(checks, check{groupNetwork, false, c.Network.Diagnose})
	}
	if c.Ledger != nil {
		checks = append(checks, check{groupThings, true, c.checkThings})
	}
	if c.VMs != nil {
		checks = append(checks, check{groupVMs, false, func(ctx context.Context) []api.Finding { return c.checkVMs(ctx, caller) }})
	}
	checks = slices.DeleteFunc(checks, func(k check) bool { return k.private && caller != rootUID })
	found := make([][]api.Finding, len(checks))
	var all sync.WaitGroup
	for i, k := range checks {
		all.Go(func() { found[i] = k.run(ctx) })
	}
	all.Wait()
	return slices.Concat(found...)
}

// run asks, but not for ever: a check that hangs goes on for itself.
func (k check) run(ctx context.Context) []api.Finding {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer := make(chan []api.Finding, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				f := found(k.group, "defect", api.SeverityError, "a check broke: %v", v)
				answer <- []api.Finding{advise(f, notKnown, "This is a defect of banger's: please report it.")}
			}
		}()
		answer <- k.ask(ctx)
	}()
	select {
	case findings := <-answer:
		return findings
	case <-ctx.Done():
		f := found(k.group, "hangs", api.SeverityError, "a check has not ended within %v", patience)
		f.Meaning = "Something of the host does not answer."
		return []api.Finding{f}
	}
}

func found(group, check string, severity api.Severity, format string, args ...any) api.Finding {
	return api.Finding{Group: group, Check: check, Severity: severity, Message: fmt.Sprintf(format, args...)}
}

func ok(group, check, format string, args ...any) []api.Finding {
	return []api.Finding{found(group, check, api.SeverityOK, format, args...)}
}

const notKnown = "Whether something is wrong here is not known."

// unknown is the finding where a check could not be made.
func unknown(group, check string, err error) []api.Finding {
	f := found(group, check, api.SeverityWarning, "this could not be looked at: %v", err)
	return []api.Finding{advise(f, notKnown, "")}
}

// advise completes a finding.
func advise(f api.Finding, meaning, advice string) api.Finding {
	f.Meaning, f.Advice = meaning, advice
	return f
}
