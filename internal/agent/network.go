package agent

import (
	"fmt"
	"log"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// refreshDelay is after what time those on the network hear of this guest: nobody waits for
// it, and it takes an emulated guest its time, in which the host wants something.
const refreshDelay = 300 * time.Millisecond

// applyNetwork makes the network interface and the resolver what they are to be.
func applyNetwork(n wire.Network) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	link, err := linux.LinkWith("/sys/class/net", mac)
	if err != nil {
		return err
	}
	if err := linux.ConfigureLink(link, n.Address, n.Gateway); err != nil {
		return err
	}
	time.AfterFunc(refreshDelay, func() {
		if err := linux.RefreshLink(link, n.Address.Addr()); err != nil { // the host may have been restarted since
			log.Print(err) // who has waited long enough is asked again anyway
		}
	})
	var text strings.Builder
	for _, server := range n.DNS {
		fmt.Fprintf(&text, "nameserver %s\n", server)
	}
	return writeUnder("/", "etc/resolv.conf", text.String(), 0o644)
}

// maxHosts is how long an image's /etc/hosts may be to be added to.
const maxHosts = 1 << 20

// nameHost lets the host name be found in /etc/hosts of the tree at dir, as Debian has it; hosts(5).
func nameHost(dir, name string) error {
	text, err := readUnder(dir, "etc/hosts", maxHosts)
	if err != nil {
		log.Print(err) // the image's own affair; the name is found by the DNS too
		return nil
	}
	var kept []string
	local := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case slices.Contains(fields, name):
			return nil
		case len(fields) > 0 && fields[0] == ownAddress && strings.HasSuffix(strings.TrimSpace(line), ownComment):
			continue // a name that it had before
		case slices.Contains(fields, "localhost"):
			local = true
		}
		kept = append(kept, strings.TrimSuffix(line, "\n")+"\n")
	}
	if !local {
		kept = append(kept, "127.0.0.1\tlocalhost\n", "::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	kept = append(kept, ownAddress+"\t"+name+" "+ownComment+"\n")
	return writeUnder(dir, "etc/hosts", strings.Join(kept, ""), 0o644)
}

// The line of /etc/hosts with the own name.
const (
	ownAddress = "127.0.1.1"
	ownComment = "# the name of this VM"
)

// readUnder reads a file of the tree at dir; an absent one is empty.
func readUnder(dir, name string, limit int64) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	info, err := root.Stat(name)
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() > limit {
		return "", fmt.Errorf("read /%s of the image: it is no file of at most %d bytes (%v)", name, limit, err)
	}
	text, err := root.ReadFile(name)
	return string(text), err
}
