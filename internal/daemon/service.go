package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"banger/internal/linux"
	"banger/internal/systemd"
)

// openLog opens the daemon's log; a long one is set aside, once. What is written to it
// goes to systemd's journal too, where that listens.
func openLog(path string) (*slog.Logger, func(), error) {
	const maxLog = 16 << 20
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open log: %w", err)
	}
	handlers := []slog.Handler{slog.NewTextHandler(f, nil)}
	if systemd.ToJournal() {
		handlers = append(handlers, slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewMultiHandler(handlers...)), func() { f.Close() }, nil
}

// notify tells systemd a state of the daemon.
func notify(log *slog.Logger, state string) {
	if err := systemd.Notify(state); err != nil {
		log.Warn("notify systemd", "err", err)
	}
}

// watchdog tells systemd again and again, until ctx ends, that the daemon is alive, as
// long as it answers on its socket. A daemon that does not is killed and started again
// by systemd; VMs do not notice.
func watchdog(ctx context.Context, socket string, log *slog.Logger) {
	within, err := systemd.Watchdog()
	if err != nil {
		log.Warn("systemd's watchdog", "err", err)
	}
	if within == 0 {
		return
	}
	tick := time.NewTicker(within / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := answers(ctx, socket, within/3); err == nil {
				notify(log, systemd.Alive)
			} else if ctx.Err() == nil {
				log.Error("the daemon does not answer on its own socket; systemd starts it again unless it does", "err", err)
			}
		}
	}
}

// answers asks the daemon at a socket for its VMs, which takes its database and their
// owners.
func answers(ctx context.Context, socket string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return linux.DialUnix(ctx, socket) }}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bangerd/v1/vms", nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	return errors.Join(err, response.Body.Close())
}
