package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest/wire"
)

const dialTimeout = 10 * time.Second

// duplex is a connection whose two directions end one by one.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// upgrade makes the connection of a request a raw stream, see api.UpgradeStream.
// Where it returns an error it has answered.
func upgrade(w http.ResponseWriter, r *http.Request) (*rawStream, error) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), api.UpgradeStream) {
		err := errors.New("the request does not ask for a stream")
		refuseStream(w, http.StatusUpgradeRequired, err)
		return nil, err
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuseStream(w, http.StatusInternalServerError, err)
		return nil, err
	}
	answer := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + api.UpgradeStream + "\r\n\r\n"
	if _, err := io.WriteString(conn, answer); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &rawStream{Conn: conn, in: buffered.Reader}, nil
}

func refuseStream(w http.ResponseWriter, status int, err error) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(wire.Error{Message: err.Error()})
}

// rawStream is a hijacked connection with what had been read of it before.
type rawStream struct {
	net.Conn
	in *bufio.Reader
}

func (s *rawStream) Read(b []byte) (int, error) { return s.in.Read(b) }

// CloseWrite ends the direction to the host. A yamux stream stays readable when
// it was closed.
func (s *rawStream) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return s.Close()
}

// join passes on in both directions until both have ended, or one has failed.
func join(a, b duplex) {
	var directions sync.WaitGroup
	pass := func(to, from duplex) {
		if _, err := io.Copy(to, from); err != nil || to.CloseWrite() != nil {
			_ = to.Close()
			_ = from.Close()
		}
	}
	directions.Go(func() { pass(a, b) })
	directions.Go(func() { pass(b, a) })
	directions.Wait()
	_ = a.Close()
	_ = b.Close()
}

// dialPort connects to a TCP port; localhost is found in images without /etc/hosts too.
func dialPort(ctx context.Context, host string, port uint32) (*net.TCPConn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: not between 1 and 65535", port)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	hosts := []string{host}
	if host == "localhost" || host == "" {
		hosts = []string{"127.0.0.1", "::1"}
	}
	var first error
	for _, h := range hosts {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(h, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// tcp is GET /tcp?port=N: a raw stream to a port of the guest's own.
func tcp(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		refuseStream(w, http.StatusBadRequest, errors.New("port: a number from 1 to 65535 is needed"))
		return
	}
	conn, err := dialPort(r.Context(), "localhost", uint32(port))
	if err != nil {
		refuseStream(w, http.StatusBadGateway, err)
		return
	}
	stream, err := upgrade(w, r)
	if err != nil {
		_ = conn.Close()
		return
	}
	join(stream, conn)
}
