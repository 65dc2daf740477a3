package network

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"banger/internal/linux"
	"banger/internal/resource"
)

// Whether the kernel forwards a packet is decided by the link that it came in by;
// net/ipv4/ip_forward stands for all links. A host that forwards already is left as
// it is. On one that does not, forwarding is switched on for the links that lead
// elsewhere, one by one, and the rules drop what we alone let through and is not for
// our VMs. Who switches ip_forward on meanwhile (Docker does) takes over: its word
// is not undone.

// globalForwarding is the switch for all links.
const globalForwarding = "net/ipv4/ip_forward"

func forwardingOf(link string) string { return "net/ipv4/conf/" + link + "/forwarding" }

// linkOf is the inverse of forwardingOf.
func linkOf(key string) string {
	return strings.TrimSuffix(strings.TrimPrefix(key, "net/ipv4/conf/"), "/forwarding")
}

// openForwarding lets packets come back from the links that lead elsewhere.
func (n *Network) openForwarding(ctx context.Context) error {
	all, err := linux.Sysctl(globalForwarding)
	if err != nil {
		return err
	}
	if all != "0" {
		return n.forgetForwarding(ctx)
	}
	names, err := linux.AddressedLinks()
	if err != nil {
		return err
	}
	for _, link := range names {
		if strings.HasPrefix(link, bridgePrefix) || strings.HasPrefix(link, dummyPrefix) {
			continue // an installation's own
		}
		key := forwardingOf(link)
		value, err := linux.Sysctl(key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && value != "0" {
			continue
		}
		if err == nil && slices.Contains(n.base.opened, link) {
			err = linux.SetSysctl(key, "1") // somebody else has closed it
		} else if err == nil {
			if _, err = n.Ledger.Acquire(ctx, Owner, KindSysctl, key, sysctlSpec{Former: value, Value: "1"}); err == nil {
				n.base.opened = append(n.base.opened, link)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forgetForwarding gives up what we hold, since it is somebody else's by now.
func (n *Network) forgetForwarding(ctx context.Context) error {
	if len(n.base.opened) == 0 {
		return nil
	}
	held, err := n.Ledger.Held(ctx, Owner)
	if err != nil {
		return err
	}
	for _, ref := range held {
		if ref.Kind == KindSysctl {
			err = errors.Join(err, n.Ledger.Release(ctx, ref))
		}
	}
	n.base.opened = nil
	return err
}

// sysctlSpec is the spec of a parameter that was changed.
type sysctlSpec struct{ Former, Value string }

// sysctls is the kind of parameters of the kernel that have another value while we
// need it. A ref's name is the parameter's path below /proc/sys.
type sysctls struct{}

func (sysctls) Kind() string   { return KindSysctl }
func (sysctls) Volatile() bool { return true }

func (sysctls) Acquire(_ context.Context, ref resource.Ref) error {
	var spec sysctlSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return err
	}
	return linux.SetSysctl(ref.Name, spec.Value)
}

// Inspect finds a parameter ours while it has our value and nobody but us wants it so.
func (sysctls) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	var spec sysctlSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return resource.Absent, err
	}
	boot, err := linux.BootID()
	if err != nil || boot != ref.BootID {
		return resource.Absent, err // the value is what that boot has set
	}
	if all, err := linux.Sysctl(globalForwarding); err != nil || all != "0" {
		return resource.Absent, err
	}
	value, err := linux.Sysctl(ref.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return resource.Absent, nil // with its link
	}
	if err != nil || value != spec.Value {
		return resource.Absent, err
	}
	return resource.Ours, nil
}

// Release puts the former value back.
func (s sysctls) Release(ctx context.Context, ref resource.Ref) error {
	if presence, err := s.Inspect(ctx, ref); err != nil || presence != resource.Ours {
		return err
	}
	var spec sysctlSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return err
	}
	return linux.SetSysctl(ref.Name, spec.Former)
}

// List implements resource.Kind: a parameter bears nobody's tag.
func (sysctls) List(context.Context) ([]resource.Ref, error) { return nil, nil }
