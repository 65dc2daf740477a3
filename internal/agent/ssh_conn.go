package agent

import (
	"context"
	"log"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const maxForwards = 32 // listeners of a connection

// sshConn is an authenticated connection.
type sshConn struct {
	*ssh.ServerConn
	image    *image
	ctx      context.Context
	cancel   context.CancelFunc
	channels chan struct{} // a token for each channel
	lenders  *borrower

	mu       sync.Mutex
	forwards map[string][]net.Listener // by the address that the client asked for; nil at the end
}

func newSSHConn(conn *ssh.ServerConn, img *image, lenders *borrower) *sshConn {
	c := &sshConn{ServerConn: conn, image: img, lenders: lenders, channels: make(chan struct{}, maxSSHChannels), forwards: map[string][]net.Listener{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// end gives back what the connection held. Its channels have ended with it.
func (c *sshConn) end() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, listeners := range c.forwards {
		closeListeners(listeners)
	}
	c.forwards = nil
}

func closeListeners(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}

// keepAlive asks the client from time to time whether it is there, and ends the
// connection of one that does not answer.
func (c *sshConn) keepAlive() {
	tick := time.NewTicker(sshAliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		late := time.AfterFunc(sshAlivePatience, func() { _ = c.Close() })
		_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			return
		}
	}
}

// answer serves the requests that concern the whole connection (RFC 4254, 4 and
// 7.1). What is unknown, a client's question whether we are there for one, is
// answered with a no.
func (c *sshConn) answer(requests <-chan *ssh.Request) {
	for r := range requests {
		ok, payload := false, []byte(nil)
		switch r.Type {
		case "tcpip-forward":
			ok, payload = c.listen(r.Payload)
		case "cancel-tcpip-forward":
			ok = c.unlisten(r.Payload)
		}
		_ = r.Reply(ok, payload)
	}
}

// take takes a token for a channel; drop gives it back.
func (c *sshConn) take() bool {
	select {
	case c.channels <- struct{}{}:
		return true
	default:
		return false
	}
}

func (c *sshConn) drop() { <-c.channels }

// open serves a channel that the client opens.
func (c *sshConn) open(n ssh.NewChannel) {
	if !c.take() {
		_ = n.Reject(ssh.ResourceShortage, "too many channels")
		return
	}
	serve := map[string]func(ssh.NewChannel){"session": c.session, "direct-tcpip": c.connect}[n.ChannelType()]
	if serve == nil {
		serve = func(n ssh.NewChannel) { _ = n.Reject(ssh.UnknownChannelType, "unknown channel type") }
	}
	go func() {
		defer c.drop()
		serve(n)
	}()
}

// connect is a channel to an address as the guest sees it: ssh -L. RFC 4254, 7.2.
func (c *sshConn) connect(n ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(n.ExtraData(), &to); err != nil {
		_ = n.Reject(ssh.ConnectionFailed, "not understood")
		return
	}
	conn, err := dialPort(c.ctx, to.Host, to.Port)
	if err != nil {
		_ = n.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := n.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	join(channel, conn)
}

// forward is what a client asks to be listened on: ssh -R.
type forward struct {
	Host string
	Port uint32
}

func (f forward) key() string { return net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))) }

// listen opens a port on the guest's loopback, whatever address is asked for, as
// sshd_config(5) has it without GatewayPorts.
func (c *sshConn) listen(payload []byte) (bool, []byte) {
	var f forward
	if ssh.Unmarshal(payload, &f) != nil || f.Port > 65535 {
		return false, nil
	}
	if u, err := sshUser(c.User()); err != nil || f.Port != 0 && f.Port < 1024 && u.uid != 0 {
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forwards == nil || len(c.forwards) >= maxForwards {
		return false, nil
	}
	four, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(f.Port))))
	if err != nil {
		return false, nil
	}
	listeners := []net.Listener{four}
	chosen := f.Port == 0
	f.Port = uint32(four.Addr().(*net.TCPAddr).Port)
	if six, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(int(f.Port)))); err == nil {
		listeners = append(listeners, six)
	}
	c.forwards[f.key()] = append(c.forwards[f.key()], listeners...)
	for _, l := range listeners {
		go c.accept(l, f)
	}
	if chosen {
		return true, ssh.Marshal(struct{ Port uint32 }{f.Port})
	}
	return true, nil
}

func (c *sshConn) unlisten(payload []byte) bool {
	var f forward
	if ssh.Unmarshal(payload, &f) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	listeners := c.forwards[f.key()]
	closeListeners(listeners)
	delete(c.forwards, f.key())
	return len(listeners) > 0
}

// accept opens a channel to the client for each connection to a forwarded port.
func (c *sshConn) accept(l net.Listener, f forward) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		if !c.take() {
			log.Printf("ssh: port %d: too many channels", f.Port)
			_ = conn.Close()
			continue
		}
		go func() {
			defer c.drop()
			from := conn.RemoteAddr().(*net.TCPAddr)
			channel, requests, err := c.OpenChannel("forwarded-tcpip", ssh.Marshal(struct {
				Host       string
				Port       uint32
				Origin     string
				OriginPort uint32
			}{f.Host, f.Port, from.IP.String(), uint32(from.Port)}))
			if err != nil {
				_ = conn.Close()
				return
			}
			go ssh.DiscardRequests(requests)
			join(channel, conn.(*net.TCPConn))
		}()
	}
}

// acceptedEnv says whether a client may set a variable: what distributions let
// sshd accept.
func acceptedEnv(name string) bool {
	rest, locale := strings.CutPrefix(name, "LC_")
	return slices.Contains([]string{"LANG", "LANGUAGE", "TZ", "COLORTERM", "NO_COLOR"}, name) ||
		locale && rest != "" && len(rest) < 64 && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}
