package agent

// runtimeConfig is configuration that the agent leaves under /run, where it does not
// outlive the machine, for an image's own init and what that starts: the network
// interface is the agent's (systemd.network(5), systemd.link(5), NetworkManager.conf(5)),
// nobody can log in on a console that is but a file on the host (an empty unit is
// masked, systemd.unit(5)), and the disk of modules is there without kmod too.
var runtimeConfig = map[string]string{
	"run/systemd/network/00-banger.network":                      "[Match]\nDriver=virtio_net\n\n[Link]\nUnmanaged=yes\n",
	"run/systemd/network/00-banger.link":                         "[Match]\nDriver=virtio_net\n\n[Link]\nMACAddressPolicy=none\n",
	"run/NetworkManager/conf.d/00-banger.conf":                   "[device-banger]\nmatch-device=driver:virtio_net\nmanaged=0\n",
	"run/systemd/system/serial-getty@ttyS0.service":              "",
	"run/systemd/system/kmod-static-nodes.service.d/banger.conf": "[Unit]\nConditionFileIsExecutable=/bin/kmod\n",
}

// unmanage keeps an image's init away from what is the agent's.
func unmanage() error {
	for name, content := range runtimeConfig {
		if err := writeUnder("/", name, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
