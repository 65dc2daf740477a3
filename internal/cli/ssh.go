package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"banger/api"
	"banger/internal/sshconf"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"
)

// sshFlags are the options of ssh(1) that are passed on to it.
type sshFlags struct {
	user                            string
	local, remote, dynamic, options []string
	noCommand                       bool
	terminal, verbose               int
}

func (f *sshFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVarP(&f.local, "local-forward", "L", nil, "as ssh -L: forward a port of this host to one in the VM")
	c.Flags().StringArrayVarP(&f.remote, "remote-forward", "R", nil, "as ssh -R: forward a port in the VM to one of this host")
	c.Flags().StringArrayVarP(&f.dynamic, "dynamic-forward", "D", nil, "as ssh -D: a SOCKS proxy into the VM")
	c.Flags().StringArrayVarP(&f.options, "option", "o", nil, "as ssh -o: any option of ssh_config(5)")
	c.Flags().BoolVarP(&f.noCommand, "no-command", "N", false, "as ssh -N: forward ports only")
	c.Flags().CountVarP(&f.terminal, "tty", "t", "as ssh -t: give the command a terminal; twice: though there is none here")
	c.Flags().CountVarP(&f.verbose, "verbose", "v", "as ssh -v: say what ssh does")
	for _, name := range []string{"local-forward", "remote-forward", "dynamic-forward", "option", "tty", "verbose"} {
		completeFlag(c, name, cobra.NoFileCompletions)
	}
}

func userFlag(c *cobra.Command, user *string) {
	c.Flags().StringVarP(user, "user", "l", "root", "user to log in as")
	completeFlag(c, "user", cobra.NoFileCompletions)
}

func (f *sshFlags) args() []string {
	var args []string
	for _, o := range []struct {
		name   string
		values []string
	}{{"-L", f.local}, {"-R", f.remote}, {"-D", f.dynamic}, {"-o", f.options}} {
		for _, v := range o.values {
			args = append(args, o.name, v)
		}
	}
	if f.noCommand {
		args = append(args, "-N")
	}
	for range f.terminal {
		args = append(args, "-t")
	}
	for range f.verbose {
		args = append(args, "-v")
	}
	return args
}

func sshCommands(d *deps) []*cobra.Command {
	var f sshFlags
	into := command(d, "ssh VM [-- COMMAND...]", "Log in to a running VM, or run a command line in it, with OpenSSH", "banger vm ssh api -L 8080:localhost:80",
		cobra.MinimumNArgs(1), func(ctx context.Context, args []string) error {
			return d.ssh(ctx, args[0], f, args[1:])
		})
	userFlag(into, &f.user)
	f.add(into)
	proxy := command(d, "proxy VM", "Connect standard input and output with a VM's ssh server", `ssh -o ProxyCommand="banger vm proxy api" root@api`,
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return d.proxy(ctx, args[0]) })
	var user string
	conf := command(d, "ssh-config VM", "Print the part of an ssh_config file with which ssh, scp, rsync and editors reach a VM",
		"ssh -F <(banger vm ssh-config api) api.vm", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			dir, target, err := d.sshTarget(ctx, args[0], user)
			if err != nil {
				return err
			}
			text, err := dir.Stanza(target)
			if err == nil {
				_, err = io.WriteString(d.stdout, text)
			}
			return err
		})
	userFlag(conf, &user)
	return []*cobra.Command{into, proxy, conf}
}

// sshTarget makes the user's key known to a VM, and the VM's to the user's ssh.
func (d *deps) sshTarget(ctx context.Context, ref, user string) (*sshconf.Dir, sshconf.Target, error) {
	fail := func(err error) (*sshconf.Dir, sshconf.Target, error) { return nil, sshconf.Target{}, err }
	system, err := d.client.System(ctx)
	if err != nil {
		return fail(err)
	}
	dir, err := sshconf.Open(filepath.Join(xdg.DataHome, "banger", system.Installation))
	if err != nil {
		return fail(err)
	}
	access, err := d.client.AuthorizeSSH(ctx, ref, dir.PublicKey())
	if err != nil {
		return fail(err)
	}
	news, err := dir.Trust(access.VM, access.HostPublicKey)
	if err != nil {
		return fail(err)
	}
	if news {
		if vms, err := d.client.VMs(ctx); err == nil {
			var ids []string
			for _, v := range vms {
				ids = append(ids, v.ID)
			}
			if err := dir.Forget(ids); err != nil {
				return fail(err)
			}
		}
	}
	self, err := os.Executable()
	if err != nil {
		return fail(fmt.Errorf("find the own program: %w", err))
	}
	target := sshconf.Target{ID: access.VM, Name: access.Name, User: user, Proxy: []string{self, "vm", "proxy"}}
	for _, v := range [][2]string{
		{"BANGER_STATE_DIR", d.paths.State}, {"BANGER_RUN_DIR", d.paths.Run}, {"BANGER_CONFIG", d.paths.Config},
	} {
		if os.Getenv(v[0]) != "" {
			target.Env = append(target.Env, v[0]+"="+v[1])
		}
	}
	return dir, target, nil
}

// ssh becomes ssh(1), whose exit status is ours.
func (d *deps) ssh(ctx context.Context, ref string, f sshFlags, args []string) error {
	path, err := exec.LookPath("ssh")
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "ssh to VM %q: there is no ssh in PATH", ref).
			WithHint("install OpenSSH's client: apt-get install openssh-client; banger vm exec %s works without", ref)
	}
	v, err := d.client.VM(ctx, ref)
	if err != nil {
		return err
	}
	if v.State != api.VMRunning {
		return api.Errorf(api.CodeConflict, "ssh to VM %q: it is %s", v.Name, v.State).
			WithHint("banger vm %s %s", choose(v.State == api.VMPaused, "resume", "start"), v.Name)
	}
	dir, target, err := d.sshTarget(ctx, v.ID, f.user)
	if err != nil {
		return err
	}
	argv, err := dir.Args(target)
	if err != nil {
		return err
	}
	argv = append([]string{"ssh"}, append(argv, f.args()...)...)
	argv = append(append(argv, "--", target.Host()), args...)
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return api.Errorf(api.CodeUnavailable, "start %s: %w", path, err)
	}
	return nil
}

// proxy ends when the VM's side has ended; the end of the input is passed on.
func (d *deps) proxy(ctx context.Context, ref string) error {
	stream, err := d.client.SSH(ctx, strings.TrimSuffix(ref, ".vm"))
	if err != nil {
		return err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	go func() {
		if _, err := io.Copy(stream, d.stdin); err == nil {
			err = stream.CloseWrite()
			if err == nil {
				return
			}
		}
		stream.Close()
	}()
	if _, err := io.Copy(d.stdout, stream); err != nil && ctx.Err() == nil {
		return api.Errorf(api.CodeUnavailable, "connection to VM %q: %w", ref, err)
	}
	return nil
}
