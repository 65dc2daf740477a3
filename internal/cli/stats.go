package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"banger/api"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

const (
	// statsPatience is how long one VM may keep the others from being shown.
	statsPatience = 6 * time.Second
	watchPause    = 2 * time.Second
)

// guestCell is a cell that only a guest that answers can fill.
func guestCell(cell func(*api.GuestStats) string) func(api.Stats) string {
	return func(s api.Stats) string {
		if s.Guest == nil {
			return ""
		}
		return cell(s.Guest)
	}
}

func used(u api.Usage) string { return size(u.Used) + " / " + size(u.Total) }

var statsColumns = []column[api.Stats]{
	{"NAME", func(s api.Stats) string { return s.Name }},
	{"CPU", guestCell(func(g *api.GuestStats) string { return fmt.Sprintf("%.0f%%", 100*g.CPU) })},
	{"LOAD", guestCell(func(g *api.GuestStats) string { return fmt.Sprintf("%.2f", g.Load[0]) })},
	{"MEMORY", guestCell(func(g *api.GuestStats) string { return used(g.Memory) })},
	{"ROOT", guestCell(func(g *api.GuestStats) string { return used(g.Root) })},
	{"WORK", guestCell(func(g *api.GuestStats) string {
		if g.Work == nil {
			return ""
		}
		return used(*g.Work)
	})},
	{"NET IN / OUT", guestCell(func(g *api.GuestStats) string { return size(g.NetReceived) + " / " + size(g.NetSent) })},
	{"PROCS", guestCell(func(g *api.GuestStats) string { return str(g.Processes) })},
	{"UP", func(s api.Stats) string {
		if s.Guest == nil {
			return "no answer"
		}
		return units.HumanDuration(time.Duration(s.Guest.Uptime * float64(time.Second)))
	}},
	{"HOST CPU", func(s api.Stats) string { return fmt.Sprintf("%.1fs", s.Host.CPU) }},
	{"HOST MEMORY", func(s api.Stats) string { return size(s.Host.Memory) }},
	{"HOST DISK", func(s api.Stats) string { return size(s.Host.Disk) }},
}

func statsCommand(d *deps) *cobra.Command {
	var watch bool
	c := command(d, "stats [VM...]", "Show what running VMs use, of themselves and of the host", "banger vm stats api", cobra.ArbitraryArgs, func(ctx context.Context, refs []string) error {
		for {
			if err := d.stats(ctx, refs, watch); err != nil || !watch {
				return watched(ctx, err)
			}
			select {
			case <-ctx.Done():
				return watched(ctx, context.Cause(ctx))
			case <-time.After(watchPause):
			}
		}
	})
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	d.withJSON(c)
	d.withQuiet(c, "print the names of those that answer")
	c.ValidArgsFunction = d.vms
	return c
}

// stats shows the VMs, or all that run. One that hangs does not hold up the others.
func (d *deps) stats(ctx context.Context, refs []string, watch bool) error {
	named := len(refs) > 0
	if !named {
		vms, err := d.client.VMs(ctx)
		if err != nil {
			return err
		}
		for _, vm := range vms {
			if vm.State == api.VMRunning {
				refs = append(refs, vm.ID)
			}
		}
	}
	all, errs := make([]api.Stats, len(refs)), make([]error, len(refs))
	var asked sync.WaitGroup
	for i, ref := range refs {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, statsPatience)
			defer cancel()
			all[i], errs[i] = d.client.Stats(ctx, ref)
		})
	}
	asked.Wait()
	shown := []api.Stats{}
	var failed failures
	for i, s := range all {
		code := api.CodeOf(errs[i])
		switch {
		case errs[i] == nil:
			shown = append(shown, s)
		case named || code != api.CodeNotFound && code != api.CodeConflict: // it has stopped meanwhile
			failed = append(failed, errs[i])
		}
	}
	if err := d.showStats(shown, named && len(refs) == 1, watch); err != nil || len(failed) == 0 {
		return err
	}
	return failed
}

func (d *deps) showStats(all []api.Stats, one, watch bool) error {
	switch {
	case d.json && one && len(all) == 1:
		return d.printJSON(all[0])
	case d.json:
		return d.printJSON(all)
	case d.quiet:
		var errs []error
		for _, s := range all {
			if s.Guest != nil {
				errs = append(errs, d.printLine(s.Name))
			}
		}
		return errors.Join(errs...)
	case len(all) == 0:
		if one {
			return nil // the error says it
		}
		_, err := fmt.Fprintln(d.stderr, "no VM runs")
		return err
	}
	if watch && d.tty {
		fmt.Fprint(d.stdout, "\x1b[H\x1b[J") // ECMA-48: to the top, erase
	}
	return d.rows(statsColumns, all)
}

func (d *deps) printLine(text string) error {
	_, err := fmt.Fprintln(d.stdout, text)
	return err
}

// rows prints a table of all, a line each.
func (d *deps) rows(columns []column[api.Stats], all []api.Stats) error {
	var rows [][]string
	for _, s := range all {
		var row []string
		for _, c := range columns {
			row = append(row, orDash(c.cell(s)))
		}
		rows = append(rows, row)
	}
	return d.table(heads(columns), rows)
}

func portsCommand(d *deps) *cobra.Command {
	c := command(d, "ports VM", "List the ports of a running VM at which something listens, and those that its image exposes", "banger vm ports api", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		ports, err := d.client.Ports(ctx, args[0])
		if err != nil {
			return err
		}
		switch {
		case d.json:
			return d.printJSON(ports)
		case len(ports) == 0 && !d.quiet:
			_, err := fmt.Fprintln(d.stderr, "nothing listens")
			return err
		}
		var rows [][]string
		for _, p := range ports {
			if d.quiet {
				if p.Address != "" {
					rows = append(rows, []string{str(p.Port)})
				}
				continue
			}
			pid := ""
			if p.PID > 0 {
				pid = str(p.PID)
			}
			rows = append(rows, []string{strings.ToLower(p.Protocol), str(p.Port), orDash(p.Address), orDash(p.Process), orDash(pid), choose(p.Exposed, "yes", "no")})
		}
		if d.quiet {
			return d.table(nil, rows)
		}
		return d.table([]string{"PROTOCOL", "PORT", "ADDRESS", "PROCESS", "PID", "EXPOSED"}, rows)
	})
	d.withJSON(c)
	d.withQuiet(c, "print the numbers of those at which something listens, one a line")
	c.ValidArgsFunction = first(d.vms)
	return c
}
