package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"
)

// echo serves each stream that the host opens with what it sends.
func echo(l *Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

func connect(t *testing.T, host net.Conn) *yamux.Session {
	t.Helper()
	c, err := Sync(t.Context(), host, "secret")
	if err != nil {
		t.Fatal(err)
	}
	session, err := yamux.Client(c, YamuxConfig(true))
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func roundTrip(t *testing.T, s *yamux.Session, size int) {
	t.Helper()
	stream, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	go func() { _, _ = stream.Write(data) }()
	got := make([]byte, size)
	if _, err := io.ReadFull(stream, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("echo of %d bytes: not the same, or %v", size, err)
	}
}

// attach joins a host, which may change, with a port that stays, as a VMM does;
// what the port writes while no host reads stays in it.
func attach(t *testing.T, port net.Conn, split int) (host net.Conn, leave func()) {
	t.Helper()
	host, far := net.Pipe()
	left := make(chan struct{}, 2)
	go func() {
		buf := make([]byte, split)
		for {
			n, err := far.Read(buf)
			if err != nil {
				break
			}
			if _, err := port.Write(buf[:n]); err != nil {
				break
			}
		}
		left <- struct{}{}
	}()
	go func() {
		buf := make([]byte, split)
		for {
			n, err := port.Read(buf)
			if err != nil {
				break
			}
			if _, err := far.Write(buf[:n]); err != nil {
				break
			}
		}
		left <- struct{}{}
	}()
	return host, func() {
		_ = host.Close()
		_ = far.Close()
		_ = port.SetReadDeadline(time.Unix(1, 0))
		<-left
		<-left
		_ = port.SetReadDeadline(time.Time{})
	}
}

// TestReconnect changes hosts, each of which leaves a session behind in the middle
// of a transfer, with rubbish before and after it.
func TestReconnect(t *testing.T) {
	for _, split := range []int{1, 7, 31, 33, 4096} {
		near, port := net.Pipe()
		l := Listen(port, "secret")
		go echo(l)
		for range 4 {
			host, leave := attach(t, near, split)
			rubbish := make([]byte, 777)
			_, _ = rand.Read(rubbish)
			copy(rubbish[700:], hostMagic("secret")[:20]) // a magic that is cut off
			if _, err := host.Write(rubbish); err != nil {
				t.Fatal(err)
			}
			session := connect(t, host)
			roundTrip(t, session, 10_000)
			stream, err := session.Open()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Write(make([]byte, 100_000)); err != nil { // the echo stands still
				t.Fatal(err)
			}
			leave()
			_ = session.Close()
		}
		_ = l.Close()
	}
}

// TestAgentBootsLate calls a port that nobody serves at first. The agent's end is
// written out, since sessions share timers that do not leave a test of synctest.
func TestAgentBootsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, port := net.Pipe()
		go func() {
			time.Sleep(5 * time.Second)
			call := make([]byte, len(hostMagic("secret"))+nonceSize)
			for {
				if _, err := io.ReadFull(port, call); err != nil {
					return
				}
				answer := append(agentMagic("secret"), call[len(call)-nonceSize:]...)
				if _, err := port.Write(append(answer, "hello"...)); err != nil {
					return
				}
			}
		}()
		c, err := Sync(t.Context(), host, "secret")
		if err != nil {
			t.Fatal(err)
		}
		hello := make([]byte, 5)
		if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "hello" {
			t.Errorf("after the handshake: %q, %v", hello, err)
		}
		_ = c.Close()
	})
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, port := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, port) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Sync(ctx, host, "secret"); err == nil {
			t.Error("no error although nobody answered")
		}
		_ = host.Close()
	})
}

func TestRubbishOnly(t *testing.T) {
	host, port := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, port) }()
	go func() { _, _ = io.Copy(port, rand.Reader) }()
	if _, err := Sync(t.Context(), host, "secret"); err == nil {
		t.Error("no error although only rubbish came")
	}
	_ = host.Close()
}

// An agent that was started again tells a host which goes on in the former one's
// session, at once and not when that fails to answer; the host's next call succeeds.
func TestAgentStartedAgain(t *testing.T) {
	port, agentEnd := net.Pipe()
	l := Listen(agentEnd, "secret")
	go echo(l)
	host, leave := attach(t, port, 1000)
	former, err := yamux.Client(host, YamuxConfig(true))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = former.Open() }()
	select {
	case <-former.CloseChan():
	case <-time.After(20 * time.Second): // a keep-alive would notice later
		t.Error("the former session goes on")
	}
	_ = former.Close()
	leave()
	host, leave = attach(t, port, 7)
	session := connect(t, host)
	roundTrip(t, session, 10_000)
	_ = session.Close()
	leave()
	_ = l.Close()
}
