package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"

	"banger/api"
	"banger/internal/config"
	"banger/internal/linux"
	"banger/internal/systemd"
)

// listen opens the socket for root and for the members of the group, if it exists.
// Where systemd has passed the socket, it is that one, which stays when the daemon
// stops; release removes one that is the daemon's own.
func listen(paths config.Paths, group string) (listener net.Listener, release func() error, err error) {
	socket := paths.Socket()
	listener, err = systemd.Listener()
	if err != nil {
		return nil, nil, err
	}
	release = func() error { return nil }
	if listener == nil {
		if err := os.RemoveAll(socket); err != nil {
			return nil, nil, err
		}
		if listener, err = linux.ListenUnix(socket); err != nil {
			return nil, nil, fmt.Errorf("listen on %s: %w", socket, err)
		}
		release = func() error { return os.RemoveAll(socket) }
	} else if passed := listener.Addr().String(); passed != socket {
		return nil, nil, errors.Join(api.Errorf(api.CodeInvalid, "start bangerd: systemd passed the socket %s, and this installation's is %s", passed, socket).
			WithHint("let ListenStream of %s and BANGER_RUN_DIR of %s agree", systemd.Socket, systemd.Service), listener.Close())
	}
	if err := openTo(socket, group); err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	return listener, release, nil
}

// openTo opens a socket to the members of a group, and to root alone where there is no
// such group.
func openTo(socket, group string) error {
	gid, mode := 0, os.FileMode(0o600)
	g, err := user.LookupGroup(group)
	if err == nil {
		mode = 0o660
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return err
		}
	}
	err = os.Chown(socket, 0, gid)
	if err == nil {
		err = os.Chmod(socket, mode)
	}
	if err != nil {
		return fmt.Errorf("open %s to group %s: %w", socket, group, err)
	}
	return nil
}
