package linux

import (
	"fmt"
	"os"

	"banger/internal/failpoint"

	"golang.org/x/sys/unix"
)

// tapFlags are those of every tap of ours: frames with no packet information
// before them, with a virtio header, so that checksums and segmentation may be left
// to the other side.
const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// AddTap makes a persistent tap device, which stays until it is deleted; one of
// that name that exists already is taken. See
// https://docs.kernel.org/networking/tuntap.html.
func AddTap(name string) error {
	f, err := OpenTap(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err = unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err == nil {
		err = failpoint.Pass("tap", "created")
	}
	if err != nil {
		return fmt.Errorf("create tap %s: keep it: %w", name, err)
	}
	return nil
}

// OpenTap opens a tap device, of which there can be one opener at a time (EBUSY).
func OpenTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: /dev/net/tun: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), "tap "+name) // blocking: who inherits it decides
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(tapFlags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return f, nil
}

// OwnTap lets a user open a tap device, and nobody else but root.
func OwnTap(name string, uid uint32) error {
	f, err := OpenTap(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, int(uid)); err != nil {
		return fmt.Errorf("give tap %s to user %d: %w", name, uid, err)
	}
	return nil
}

// TapMTU returns how large the packets of a tap device are. What is no tap device is an
// error.
func TapMTU(name string) (int, error) {
	link, err := findLink(name)
	switch {
	case err != nil:
		return 0, err
	case link == nil:
		return 0, fmt.Errorf("tap %s: there is no such device", name)
	case LinkKind(link.Type()) != LinkTap:
		return 0, fmt.Errorf("tap %s: it is a %s", name, link.Type())
	}
	return link.Attrs().MTU, nil
}
