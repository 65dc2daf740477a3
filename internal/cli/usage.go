package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"banger/api"

	"github.com/spf13/cobra"
)

// dfCommand shows what takes the disk.
func dfCommand(d *deps) *cobra.Command {
	var verbose bool
	c := command(d, "df", "Show what takes the disk, and what of it can go", "banger system df --verbose", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			u, err := d.client.DiskUsage(ctx)
			switch {
			case err != nil:
				return err
			case d.json:
				return d.printJSON(u)
			case d.quiet:
				_, err := fmt.Fprintln(d.stdout, u.Total)
				return err
			case verbose:
				return d.dfVerbose(u)
			}
			return d.dfSummary(u)
		})
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "show each image, VM, layer, kernel and file")
	d.withJSON(c)
	d.withQuiet(c, "print the bytes of all together only")
	return c
}

// dfSummary has a line for each sort of things. What can go is what prune removes with
// the flag that is named.
func (d *deps) dfSummary(u api.DiskUsage) error {
	s := sums(u)
	row := func(what string, n, used int, size, free int64, flag string) []string {
		can := "-"
		if free > 0 {
			can = bytesOf(free) + flag
		}
		in := "-"
		if used >= 0 {
			in = str(used)
		}
		return []string{what, str(n), in, bytesOf(size), can}
	}
	rows := [][]string{
		row("images", len(u.Images), s.imagesUsed, s.layers, s.layersFree, " (--all)"),
		row("VMs", len(u.VMs), s.running, s.vms, 0, ""),
		row("kernels", len(u.Kernels), s.kernelsUsed, s.kernels, s.stale, ""),
		row("caches", len(u.Caches), -1, s.caches, s.caches, ""),
		row("set aside", len(u.Lost), -1, s.lost, s.lost, " (--lost)"),
		{"other", "-", "-", bytesOf(u.Other), "-"},
		{"total", "-", "-", bytesOf(u.Total), "-"},
	}
	if err := d.table([]string{"WHAT", "COUNT", "IN USE", "SIZE", "CAN GO"}, rows); err != nil {
		return err
	}
	return d.dfRoom(u)
}

// dfRoom says how much room there still is.
func (d *deps) dfRoom(u api.DiskUsage) error {
	_, err := fmt.Fprintf(d.stdout, "%s of %s are available; %s are kept free\n", bytesOf(u.Available), bytesOf(u.Size), bytesOf(u.Reserve))
	return err
}

// dfSums adds up a DiskUsage.
type dfSums struct {
	imagesUsed, kernelsUsed, running int

	layers, layersFree, vms, kernels, stale, caches, lost int64
}

func sums(u api.DiskUsage) (s dfSums) {
	for _, i := range u.Images {
		if i.Used {
			s.imagesUsed++
		}
	}
	for _, l := range u.Layers {
		s.layers += l.Size
		if !l.Used {
			s.layersFree += l.Size
		}
	}
	for _, v := range u.VMs {
		s.vms += v.Size
		if v.State == api.VMRunning {
			s.running++
		}
	}
	for _, k := range u.Kernels {
		s.kernels += k.Size
		s.stale += k.Stale
		if k.Used {
			s.kernelsUsed++
		}
	}
	for _, f := range u.Caches {
		s.caches += f.Size
	}
	for _, f := range u.Lost {
		s.lost += f.Size
	}
	return s
}

// dfVerbose has a table for each sort of things that there is.
func (d *deps) dfVerbose(u api.DiskUsage) error {
	var images, layers, vms, kernels, files [][]string
	for _, i := range u.Images {
		images = append(images, []string{i.Name, owner(i.Owner), bytesOf(i.Size), bytesOf(i.Shared), choose(i.Used, "yes", "no")})
	}
	for _, l := range u.Layers {
		layers = append(layers, []string{orDash(shortID(l.Digest)), bytesOf(l.Size), orDash(strings.Join(l.Images, ", ")), choose(l.Used, "yes", "no"), l.Dir})
	}
	for _, v := range u.VMs {
		vms = append(vms, []string{v.Name, owner(v.Owner), string(v.State), bytesOf(v.Root), bytesOf(v.Work), bytesOf(v.Saved), bytesOf(v.Logs), bytesOf(v.Size)})
	}
	for _, k := range u.Kernels {
		kernels = append(kernels, []string{k.Name, bytesOf(k.Size), bytesOf(k.Stale), choose(k.Used, "yes", choose(k.Default, "default", "no"))})
	}
	for _, f := range append(u.Caches, u.Lost...) {
		files = append(files, []string{f.Name, bytesOf(f.Size), ago(f.Changed)})
	}
	files = append(files, []string{"(other)", bytesOf(u.Other), "-"})
	for _, t := range []struct {
		head []string
		rows [][]string
	}{
		{[]string{"IMAGE", "OWNER", "SIZE", "SHARED", "IN USE"}, images},
		{[]string{"LAYER", "SIZE", "IMAGES", "IN USE", "DIRECTORY"}, layers},
		{[]string{"VM", "OWNER", "STATE", "ROOT", "WORK", "SAVED", "LOGS", "SIZE"}, vms},
		{[]string{"KERNEL", "SIZE", "STALE", "IN USE"}, kernels},
		{[]string{"FILE", "SIZE", "CHANGED"}, files},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if err := d.table(t.head, t.rows); err != nil {
			return err
		}
		fmt.Fprintln(d.stdout)
	}
	fmt.Fprintf(d.stdout, "%s in all\n", bytesOf(u.Total))
	return d.dfRoom(u)
}

// bytesOf is size, with 0 in as many words.
func bytesOf(n int64) string {
	if n == 0 {
		return "0"
	}
	return size(n)
}

// pruneCommand removes what nobody needs.
func pruneCommand(d *deps) *cobra.Command {
	var req api.Prune
	var force bool
	c := command(d, "prune", "Remove what nobody needs: layers, caches, initramfs of other versions", "banger system prune --all --dry-run", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			return d.prune(ctx, force, req.DryRun, func(dry bool) (api.Pruned, error) {
				req.DryRun = dry
				return d.client.Prune(ctx, req)
			})
		})
	c.Flags().BoolVarP(&req.All, "all", "a", false, "images and kernels that no VM uses as well, those of yours; root's default kernel stays")
	c.Flags().BoolVar(&req.Lost, "lost", false, "also what was set aside when a database was lost; disks of VMs may be in it")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "only show what would go")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	d.withJSON(c)
	d.withQuiet(c, "print nothing but errors")
	return c
}

// prune removes what remove does, or only says what that is. Without force it asks first.
func (d *deps) prune(ctx context.Context, force, dry bool, remove func(dry bool) (api.Pruned, error)) error {
	if !force && !dry {
		if yes, err := d.confirmPrune(ctx, remove); err != nil || !yes {
			return err
		}
	}
	done, err := remove(dry)
	if err != nil {
		return err
	}
	return d.pruned(done, dry)
}

// confirmPrune shows what would go and asks whether it may.
func (d *deps) confirmPrune(ctx context.Context, remove func(dry bool) (api.Pruned, error)) (yes bool, err error) {
	if !d.tty {
		return false, api.Errorf(api.CodeInvalid, "prune: there is no terminal to ask whether it may").WithHint("--force does not ask, --dry-run shows what would go")
	}
	would, err := remove(true)
	if err != nil {
		return false, err
	}
	if len(would.Items) == 0 {
		_, err := fmt.Fprintln(d.stderr, "there is nothing to remove")
		return false, err
	}
	if err := d.prunedTable(would); err != nil {
		return false, err
	}
	fmt.Fprintf(d.stderr, "Remove these %d, which take %s? [y/N] ", len(would.Items), bytesOf(would.Size))
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(d.stdin).ReadString('\n') // no answer is a no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case text := <-answer:
		if text == "y" || text == "yes" {
			return true, nil
		}
	}
	_, err = fmt.Fprintln(d.stderr, "nothing was removed")
	return false, err
}

func (d *deps) prunedTable(p api.Pruned) error {
	var rows [][]string
	for _, i := range p.Items {
		if i.Error == nil {
			rows = append(rows, []string{i.Kind, i.Name, bytesOf(i.Size)})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return d.table([]string{"KIND", "NAME", "SIZE"}, rows)
}

// pruned says what was removed, and what could not be.
func (d *deps) pruned(p api.Pruned, dry bool) error {
	var failed failures
	for _, i := range p.Items {
		if i.Error != nil {
			failed = append(failed, i.Error)
		}
	}
	err := error(nil)
	switch {
	case d.json:
		err = d.printJSON(p)
	case !d.quiet:
		if err = d.prunedTable(p); err == nil {
			_, err = fmt.Fprintln(d.stdout, choose(dry, "would free ", "freed ")+bytesOf(p.Size))
		}
	}
	if err == nil && len(failed) > 0 {
		return failed
	}
	return err
}
