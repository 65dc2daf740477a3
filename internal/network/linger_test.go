package network_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"banger/internal/hosttest"
	"banger/internal/linux"
	"banger/internal/network"
)

// TestLinger has what nobody is attached to stay for the next one, be mended for it, and
// go in time, or with the daemon.
func TestLinger(t *testing.T) {
	w := newWorld(t)
	serve := func(linger time.Duration) (n *network.Network, visit func(), stop func()) {
		n, ledger := w.daemon(w.db)
		n.Linger = linger
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			n.Run(ctx)
			close(ended)
		}()
		visit = func() {
			w.attach(n, "a")
			release(t, n, ledger, "a")
		}
		return n, visit, func() { cancel(); <-ended }
	}
	n, visit, stop := serve(time.Hour)
	hosttest.Eventually(t, time.Minute, "the network stays", func() bool {
		visit() // Run may not have begun
		return len(w.left()) > 0
	})
	before := w.left()
	visit()
	if after := w.left(); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("there is %v, before %v", after, before)
	}
	for _, link := range before {
		if name, isBridge := strings.CutPrefix(link, network.KindBridge+" "); isBridge {
			if err := linux.DeleteLink(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, a := w.attach(n, "b")
	if _, err := n.Guest(a.IP); err != nil || strings.Join(w.left(), "\n") == strings.Join(before, "\n") {
		t.Errorf("of the network whose bridge was removed there is %v, %v", w.left(), err)
	}
	stop()
	if len(w.left()) == 0 {
		t.Error("the network of one who is attached went with the daemon")
	}
	_, ledger := w.daemon(w.db)
	release(t, n, ledger, "b")
	if left := w.left(); len(left) > 0 {
		t.Errorf("left when the last one goes after the daemon: %v", left)
	}

	_, visit, stop = serve(time.Millisecond)
	visit()
	hosttest.Eventually(t, 10*time.Second, "the network goes in time", func() bool { return len(w.left()) == 0 })
	stop()

	_, visit, stop = serve(time.Hour)
	hosttest.Eventually(t, 10*time.Second, "the network stays", func() bool {
		visit()
		return len(w.left()) > 0
	})
	stop()
	if left := w.left(); len(left) > 0 {
		t.Errorf("left by a daemon that has stopped: %v", left)
	}
}
