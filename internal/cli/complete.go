package cli

import (
	"context"
	"slices"
	"time"

	"banger/api"

	"github.com/spf13/cobra"
)

// completionPatience bounds what a user waits for after pressing Tab.
const completionPatience = 2 * time.Second

// vms, images and kernels complete names, those that the line does not have yet.
// They start no daemon: without one there is nothing to offer.
func (d *deps) vms(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return names(c, args, d.client.VMs, func(v api.VM) (string, string) { return v.Name, string(v.State) })
}

func (d *deps) images(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return names(c, args, d.client.Images, func(i api.Image) (string, string) { return i.Name, size(i.Size) })
}

func (d *deps) kernels(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return names(c, args, d.client.Kernels, func(k api.Kernel) (string, string) { return k.Name, k.Source })
}

func names[T any](c *cobra.Command, args []string, get func(context.Context) ([]T, error), name func(T) (string, string)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completionPatience)
	defer cancel()
	all, err := get(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, v := range all {
		if name, about := name(v); !slices.Contains(args, name) {
			out = append(out, cobra.CompletionWithDesc(name, about))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// first completes the first argument only.
func first(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(c, args, typed)
	}
}

// fileSecond completes the name of a file as the second argument.
func fileSecond(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeFlag completes the values of a flag that c has.
func completeFlag(c *cobra.Command, flag string, complete cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err) // there is no such flag, or it has one already
	}
}

// addCompletion adds cobra's own commands now, so that they have examples as all
// others do.
func addCompletion(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	examples := map[string]string{
		"help":       "banger help vm run",
		"completion": "source <(banger completion bash)",
		"bash":       "source <(banger completion bash)",
		"zsh":        "source <(banger completion zsh)",
		"fish":       "banger completion fish | source",
		"powershell": "banger completion powershell | Out-String | Invoke-Expression",
	}
	for _, c := range root.Commands() {
		for _, c := range append(c.Commands(), c) {
			if example, ok := examples[c.Name()]; ok {
				c.Example = "  " + example
			}
		}
	}
}
