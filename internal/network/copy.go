package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
)

// networkCopy is network.json, in the state directory: the second copy of what was
// chosen for the network, and of what all attachments share.
type networkCopy struct {
	resource.Handles
	Subnet string `json:"subnet"`
}

// keepCopy brings the second copy up to date. That it cannot is no reason to refuse
// what was done.
func (n *Network) keepCopy(ctx context.Context) {
	state := fmt.Sprint(n.base)
	if n.Copy == "" || state == n.copied {
		return
	}
	var c networkCopy
	var found bool
	var err error
	c.Handles, err = n.Ledger.Handles(ctx, n.Installation, Owner)
	if err == nil {
		c.Subnet, found, err = n.Settings.Setting(ctx, subnetSetting)
	}
	if err == nil && (found || len(c.Objects) > 0) {
		err = resource.KeepCopy(n.Copy, c)
	}
	if err != nil {
		n.Log.Warn("keep a second copy of what the network is", "err", err)
		return
	}
	n.copied = state
}

// Restore makes the database know again what only network.json does, as after its loss.
// It comes before the ledger recovers. A copy that is damaged is set aside. It refuses,
// as Check does, from another network namespace.
func (n *Network) Restore(ctx context.Context) error {
	var c networkCopy
	err := resource.ReadCopy(n.Copy, resource.HandlesSchema, &c)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, resource.ErrDamaged), errors.Is(err, resource.ErrNewer):
		aside, aerr := resource.SetAside(n.Copy)
		n.Log.Warn("a second copy cannot be used and is set aside; the ledger serves", "reason", err, "to", aside)
		return aerr
	case err != nil:
		return err
	}
	if p, err := netip.ParsePrefix(c.Subnet); err == nil {
		if err := n.prefer(ctx, p); err != nil {
			return err
		}
	}
	return n.RestoreObjects(ctx, c.Handles)
}

// prefer makes a subnet the chosen one where none is.
func (n *Network) prefer(ctx context.Context, subnet netip.Prefix) error {
	if _, found, err := n.Settings.Setting(ctx, subnetSetting); err != nil || found {
		return err
	}
	return n.Settings.PutSetting(ctx, subnetSetting, subnet.String())
}

// Prefer makes the subnet with an address of a VM the chosen one where none is.
func (n *Network) Prefer(ctx context.Context, ip netip.Addr) error {
	subnet, err := ip.Prefix(subnetBits)
	if err != nil {
		return err
	}
	return n.prefer(ctx, subnet)
}

// RestoreObjects takes up what all attachments share by the word of a second copy, of
// this boot and this installation, is there, bears our tag and is not in the ledger. A
// parameter of the kernel bears no tag: it is ours by what it is and has.
func (n *Network) RestoreObjects(ctx context.Context, h resource.Handles) error {
	objects := slices.DeleteFunc(slices.Clone(h.Objects), func(o resource.Object) bool { return o.Owner != Owner })
	if len(objects) == 0 || !n.Ledger.Current(h, n.Installation) {
		return nil
	}
	if err := refuseElsewhere(h.NetNS, objects[0].Kind+" "+objects[0].Name); err != nil {
		return err
	}
	unknown, err := n.Ledger.Unknown(ctx, "")
	if err != nil {
		return err
	}
	known, err := n.Ledger.Rows(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		is := func(r resource.Ref) bool { return r.Kind == o.Kind && r.Name == o.Name }
		if slices.ContainsFunc(known, is) {
			continue
		}
		ours := slices.ContainsFunc(unknown, is)
		if link := linkOf(o.Name); o.Kind == KindSysctl && o.Name == forwardingOf(link) && !strings.Contains(link, "/") {
			boot, err := linux.BootID()
			if err != nil {
				return err
			}
			presence, err := n.Ledger.Inspect(ctx, resource.Ref{Kind: o.Kind, Name: o.Name, Spec: o.Spec, BootID: boot})
			if err != nil {
				return err
			}
			ours = presence == resource.Ours
		}
		if ours {
			if err := n.Ledger.Adopt(ctx, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuseElsewhere is an error where the network namespace called id is not the
// caller's, and something is in it; what is what was found to be there.
func refuseElsewhere(id, what string) error {
	here, err := linux.NetNSID()
	if err != nil || id == here {
		return err
	}
	pid, err := linux.InNetNS(id)
	if err != nil || pid == 0 {
		return err
	}
	return api.Errorf(api.CodeConflict, "take up the network: %s is in another network namespace", what).
		WithHint("start bangerd there: nsenter --net=/proc/%d/ns/net bangerd", pid)
}
