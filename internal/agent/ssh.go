package agent

import (
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest/wire"
	"banger/internal/linux"
)

// Bounds of the ssh server.
const (
	maxSSHConns      = 64 // from the host, and as many by TCP
	maxSSHChannels   = 64 // of a connection
	maxAuthKeys      = 1024
	sshAuthTime      = 30 * time.Second // from the connection to its authentication
	sshAliveEvery    = time.Minute
	sshAlivePatience = 3 * time.Minute // without an answer to a question whether the client is there
	sshPort          = 22
	sshPortCheck     = 2 * time.Second
)

// sshServer is an ssh server (RFC 4251 to 4254) with public keys as its only
// authentication. Whoever has one of the keys may log in as any user of the
// guest. It has no keys, and refuses everybody, until it is configured.
type sshServer struct {
	image               *image
	hostConns, tcpConns chan struct{} // a token for each connection
	lenders             *borrower

	mu       sync.Mutex
	settings *wire.SSH // nil before the first
	keys     *sshKeys  // what they mean; nil until a connection asks: it takes an emulated guest its time
	watch    sync.Once
}

// sshKeys are the keys of a wire.SSH.
type sshKeys struct {
	host    ssh.Signer
	allowed map[string]bool // by the wire format of the key
}

func newSSHServer(img *image) *sshServer {
	return &sshServer{image: img, hostConns: make(chan struct{}, maxSSHConns), tcpConns: make(chan struct{}, maxSSHConns), lenders: newBorrower()}
}

// configure replaces host key and authorised keys, for connections to come.
func (s *sshServer) configure(c wire.SSH) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings, s.keys = &c, nil
	s.watch.Do(func() { go s.keepPort() })
}

// parseSSH reads the keys, of which all have to be understood.
func parseSSH(c wire.SSH) (*sshKeys, error) {
	if len(c.AuthorizedKeys) > maxAuthKeys {
		return nil, fmt.Errorf("ssh: more than %d authorized keys", maxAuthKeys)
	}
	allowed := map[string]bool{}
	for _, line := range c.AuthorizedKeys {
		key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(options) > 0 || len(rest) > 0 {
			return nil, errors.New("ssh: a line of the authorized keys is not understood")
		}
		allowed[string(key.Marshal())] = true
	}
	host, err := ssh.ParsePrivateKey([]byte(c.HostKey))
	if err != nil {
		return nil, errors.New("ssh: the host key is not understood")
	}
	return &sshKeys{host: host, allowed: allowed}, nil
}

// known returns the keys of now.
func (s *sshServer) known() (*sshKeys, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settings == nil {
		return nil, errors.New("ssh: a connection came before the configuration")
	}
	var err error
	if s.keys == nil {
		s.keys, err = parseSSH(*s.settings)
	}
	return s.keys, err
}

// keepPort serves TCP port 22 as long as the image has no ssh server of its own
// and nobody else listens there. One that is installed later gets the port.
func (s *sshServer) keepPort() {
	var l net.Listener
	for {
		own := imageHasSSHD()
		switch {
		case own && l != nil:
			_ = l.Close()
			l = nil
		case !own && l == nil:
			if got, err := linux.ListenTCP(sshPort); err == nil {
				l = got
				go s.accept(l)
			}
		}
		time.Sleep(sshPortCheck)
	}
}

func imageHasSSHD() bool {
	for _, path := range []string{"/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd", "/usr/sbin/dropbear"} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

func (s *sshServer) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors, mostly
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go s.handle(conn, s.tcpConns)
	}
}

// serve is GET /ssh: an ssh connection on a raw stream.
func (s *sshServer) serve(w http.ResponseWriter, r *http.Request) {
	if stream, err := upgrade(w, r); err == nil {
		s.handle(stream, s.hostConns)
	}
}

// handle serves one connection to its end.
func (s *sshServer) handle(conn net.Conn, tokens chan struct{}) {
	defer func() { _ = conn.Close() }()
	select {
	case tokens <- struct{}{}:
		defer func() { <-tokens }()
	default:
		return
	}
	cfg, err := s.config()
	if err != nil {
		log.Print(err)
		return
	}
	if conn.SetDeadline(time.Now().Add(sshAuthTime)) != nil {
		return
	}
	client, channels, requests, err := ssh.NewServerConn(conn, cfg)
	if err != nil || conn.SetDeadline(time.Time{}) != nil {
		return // who does not get in is told so by the protocol
	}
	c := newSSHConn(client, s.image, s.lenders)
	go c.keepAlive()
	go c.answer(requests)
	for channel := range channels {
		c.open(channel)
	}
	c.end()
}

func (s *sshServer) config() (*ssh.ServerConfig, error) {
	keys, err := s.known()
	if err != nil {
		return nil, err
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: s.authorise, ServerVersion: "SSH-2.0-banger"}
	cfg.AddHostKey(keys.host)
	return cfg, nil
}

func (s *sshServer) authorise(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if keys, err := s.known(); err != nil || !keys.allowed[string(key.Marshal())] {
		return nil, errors.New("unknown key")
	}
	if _, err := sshUser(meta.User()); err != nil {
		return nil, &ssh.BannerError{Err: err, Message: "banger: " + err.Error() + "\r\n"}
	}
	return &ssh.Permissions{}, nil
}

// sshUser finds a user by name; groups cannot be chosen as with exec.
func sshUser(name string) (user, error) {
	if strings.Contains(name, ":") || name == "" {
		return user{}, fmt.Errorf("the guest has no user %q", name)
	}
	u, err := findUser(name)
	if err != nil {
		return user{}, fmt.Errorf("the guest has no user %q", name)
	}
	return u, nil
}
