package hosttest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"banger/internal/linux"
)

// What there is around the host that a test runs on: its uplink, and beyond it a
// network that plays the Internet. The addresses are for documentation (RFC 5737).
const (
	Uplink         = "uplink"       // the host's link
	HostAddress    = "198.51.100.2" // the host's address there
	GatewayAddress = "198.51.100.1" // of the host
	PublicAddress  = "203.0.113.7"  // out there
	PrivateAddress = "172.20.30.40" // out there as well, in a private network
)

// inside says, in the environment, that the process has a network of its own.
const inside = "BANGER_TEST_NETWORK"

// internet is the network namespace that is beyond the uplink.
var internet *linux.NetNS

// Main runs the tests of a package in a network namespace of its own, in which the
// daemons that they start live too, so that no test touches the machine's network.
// TestMain calls it with its testing.M.
func Main(m interface{ Run() int }) {
	if os.Getuid() != 0 {
		os.Exit(m.Run()) // what needs a network needs root too, and says so
	}
	if slices.Contains(os.Args, "-test.fuzzworker") {
		os.Exit(m.Run()) // it is one of several in the network of who started it
	}
	if os.Getenv(inside) == "" {
		err := linux.ExecInNetNS("/proc/self/exe", os.Args, append(os.Environ(), inside+"=1"))
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		os.Exit(1)
	}
	if err := surround(); err != nil {
		fmt.Fprintln(os.Stderr, "make a network for the tests:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// surround makes the uplink and what is beyond it.
func surround() (err error) {
	if internet, err = linux.NewNetNS(); err != nil {
		return err
	}
	if err := linux.SetLinkUp("lo"); err != nil {
		return err
	}
	if err := linux.AddVeth(Uplink, "downlink", internet); err != nil {
		return err
	}
	if err := linkUp(Uplink, HostAddress+"/24"); err != nil {
		return err
	}
	if err := linux.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(GatewayAddress)); err != nil {
		return err
	}
	return internet.Do(func() error {
		for name, address := range map[string]string{"public": PublicAddress + "/32", "private": PrivateAddress + "/32"} {
			if err := linux.AddLink(linux.LinkDummy, name, nil); err != nil {
				return err
			}
			if err := linkUp(name, address); err != nil {
				return err
			}
		}
		return linkUp("downlink", GatewayAddress+"/24")
	})
}

func linkUp(link, address string) error {
	if err := linux.SetAddress(link, netip.MustParsePrefix(address)); err != nil {
		return err
	}
	return linux.SetLinkUp(link)
}

// OnInternet runs fn where the Internet is; sockets that it makes stay there.
func OnInternet(t testing.TB, fn func() error) {
	t.Helper()
	if err := internet.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// Serve has every TCP connection to an address of the host answered with a text,
// until the end of the test.
func Serve(t testing.TB, address, text string) {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, text)
}

// ServeOnInternet is Serve for an address out there.
func ServeOnInternet(t testing.TB, address, text string) {
	t.Helper()
	var l net.Listener
	OnInternet(t, func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	serve(t, l, text)
}

func serve(t testing.TB, l net.Listener, text string) {
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(text)) // who called may be gone
			_ = c.Close()
		}
	}()
}

// OnMachine lets the commands of h, and with them its daemon, have the network of
// the machine, for what has to be fetched.
func (h *Host) OnMachine(t testing.TB) {
	t.Helper()
	ns, err := linux.OpenNetNS(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	h.machine = ns // closed by New's cleanup, which looks around in it first
}

// Enter prepares a command to run on the network that h has.
func (h *Host) Enter(cmd *exec.Cmd) *exec.Cmd {
	if h.machine == nil {
		return cmd
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		cmd.Err = err
	}
	cmd.Args = append([]string{nsenter, "--net=" + h.machine.Path(), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = nsenter
	return cmd
}

// networkLeftovers describes the links and tables of an installation.
func (h *Host) networkLeftovers(installation string) []string {
	var left []string
	look := func() error {
		for _, prefix := range []string{"bt", "bb", "bd"} {
			links, err := linux.LinkNames(prefix + installation)
			if err != nil {
				return err
			}
			for _, name := range links {
				left = append(left, "link "+name)
			}
		}
		tables, err := linux.NftNames("banger_" + installation + "_")
		for _, name := range tables {
			left = append(left, "nft tables "+name)
		}
		return err
	}
	err := error(nil)
	if h.machine != nil {
		err = h.machine.Do(look)
	} else if err = look(); err == nil {
		left = append(left, forwardingLeft()...)
	}
	if err != nil {
		left = append(left, err.Error())
	}
	return left
}

// forwardingLeft says so when packets are still let through the host of the tests.
func forwardingLeft() []string {
	value, err := linux.Sysctl("net/ipv4/conf/" + Uplink + "/forwarding")
	if err != nil {
		return []string{err.Error()}
	}
	if value != "0" {
		return []string{"forwarding from " + Uplink}
	}
	return nil
}

// RouteByHost lets who is out there send packets to an address by the host.
func RouteByHost(address string) error {
	return linux.AddRoute(netip.PrefixFrom(netip.MustParseAddr(address), 32), netip.MustParseAddr(HostAddress))
}
