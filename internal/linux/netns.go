package linux

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetNS is a network namespace; network_namespaces(7). It lives as long as the file
// is open, and while something is in it.
type NetNS struct{ file *os.File }

// NewNetNS makes a network namespace with nothing in it but a loopback link that is up.
func NewNetNS() (*NetNS, error) {
	ns := &NetNS{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		ns.file = file
		return SetLinkUp("lo")
	})
	return ns, err
}

// Path is where processes find the namespace while this one has it open.
func (n *NetNS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Close lets go of the namespace.
func (n *NetNS) Close() error { return n.file.Close() }

// Do runs fn on a thread in the namespace. Sockets that fn makes stay in it.
func (n *NetNS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a thread of its own, which ends with it.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread does not end, and stands for the process
			defer runtime.UnlockOSThread()
			done <- onThread(fn)
			return
		}
		done <- fn() // and no unlock: the thread is not fit for anything else
	}()
	return <-done
}

// AddVeth makes a pair of links, of which one is in the caller's namespace and the
// other in peer; veth(4).
func AddVeth(name, peerName string, peer *NetNS) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(int(peer.file.Fd()))}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create veth %s: %w", name, err)
	}
	return nil
}

// AddRoute routes what goes to a network by a gateway.
func AddRoute(to netip.Prefix, gateway netip.Addr) error {
	if err := netlink.RouteReplace(&netlink.Route{Gw: gateway.AsSlice(), Dst: ipNet(to)}); err != nil {
		return fmt.Errorf("route to %s by %s: %w", to, gateway, err)
	}
	return nil
}

// ExecInNetNS replaces the program of this process by path, in a new network
// namespace. It returns only on an error.
func ExecInNetNS(path string, args, env []string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	return unix.Exec(path, args, env)
}

// OpenNetNS opens the network namespace of a process.
func OpenNetNS(pid int) (*NetNS, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &NetNS{file}, nil
}

// NetNSID names the caller's network namespace for as long as it exists;
// namespaces(7).
func NetNSID() (string, error) {
	id, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("find network namespace: %w", err)
	}
	return id, nil
}

// InNetNS returns a process in the network namespace called id; 0 where there is none.
func InNetNS(id string) (pid int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if is, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && is == id { // or it has ended
			return pid, nil
		}
	}
	return 0, nil
}
