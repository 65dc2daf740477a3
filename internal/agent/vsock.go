package agent

import (
	"log"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/mdlayher/vsock"

	"banger/internal/guest/wire"
)

// overVsock says whether the channel is vsock.
var overVsock = sync.OnceValue(func() bool {
	cmdline, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(cmdline)), wire.VsockWord)
})

// listenVsock listens where the host connects to, and lets it know.
func listenVsock() (net.Listener, error) {
	l, err := vsock.Listen(wire.AgentPort, nil)
	if err != nil {
		return nil, err
	}
	go func() {
		c, err := vsock.Dial(vsock.Host, wire.ReadyPort, nil)
		if err != nil { // nobody waits
			log.Print("the host does not wait for the agent: ", err)
			return
		}
		_ = c.Close()
	}()
	return hostOnly{l}, nil
}

// hostOnly accepts what comes from the host: with a transport for that, programs of the
// guest can connect as well.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if from, ok := c.RemoteAddr().(*vsock.Addr); ok && from.ContextID == vsock.Host {
			return c, nil
		}
		_ = c.Close()
	}
}
