package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"banger/internal/linux"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// graceTime is what short requests get to end when the daemon does.
	graceTime = 5 * time.Second
	maxHeader = 64 << 10
)

type (
	peerKey struct{}
	stopKey struct{}
)

// ConnContext is for http.Server.ConnContext: it notes who is at the other end of
// a Unix socket, by the credentials that the kernel took at connect(2).
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	uid, err := peerUID(c)
	if err != nil {
		return ctx // without credentials every request is refused
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

func peerUID(c net.Conn) (uint32, error) {
	if counted, ok := c.(*countedConn); ok {
		c = counted.UnixConn
	}
	uid, _, _, err := linux.PeerCred(c)
	return uid, err
}

func peer(ctx context.Context) (uid uint32, known bool) {
	uid, known = ctx.Value(peerKey{}).(uint32)
	return uid, known
}

// caller is the uid of the request's peer. guard has let none pass that has none.
func caller(ctx context.Context) uint32 {
	uid, known := peer(ctx)
	if !known {
		return math.MaxUint32 // (uid_t)-1, which nobody has; setresuid(2)
	}
	return uid
}

// stopping is the context that ends when the daemon is to end, or nil.
func stopping(ctx context.Context) context.Context {
	stop, _ := ctx.Value(stopKey{}).(context.Context)
	return stop
}

// Serve serves h on l until ctx ends. Then it closes l and the streams, lets the
// other requests end for some seconds, and returns nil when no handler runs any
// more. An error is that of l, or says that a handler is stuck.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	var handlers sync.WaitGroup // those of hijacked connections too, unlike in Shutdown
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			h.ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(context.Background(), stopKey{}, ctx) },
		ConnContext:       ConnContext,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// OPTIONS * is a request like others.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(fair(l, peerUID)) }()
	select {
	case err := <-served:
		_ = srv.Close()
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), graceTime)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // ends the contexts of the requests that are left
	}
	<-served
	ended := make(chan struct{})
	go func() {
		handlers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(graceTime):
		return errors.New("stop serving: a request does not end")
	}
}
