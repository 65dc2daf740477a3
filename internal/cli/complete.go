package cli

import "github.com/spf13/cobra"

// completeVM completes the name of a VM as a command's first argument. It starts no
// daemon: without one there is nothing to offer.
func (d *deps) completeVM(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	vms, err := d.client.VMs(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range vms {
		names = append(names, v.Name+"\t"+string(v.State))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
