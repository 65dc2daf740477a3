// Package systemd is the host's service manager, where that is systemd: what a service
// owes it (readiness, watchdog, the socket that it passes), and the scopes in which
// VMMs outlive the service that starts them.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// The units of an installed banger.
const (
	Service = "bangerd.service"
	Socket  = "bangerd.socket"
	Slice   = "banger.slice"
)

// jobPatience is how long a job of systemd's may take.
const jobPatience = 30 * time.Second

// Booted tells whether systemd is the service manager; sd_booted(3).
func Booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Listener returns the Unix socket that systemd has passed to this process, nil where it
// has passed none; sd_listen_fds(3). It can be asked for once.
func Listener() (net.Listener, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	switch len(files) {
	case 0:
		return nil, nil
	case 1:
		listener, err := net.FileListener(files[0])
		if err != nil {
			return nil, fmt.Errorf("take the socket that systemd passed: %w", err)
		}
		if _, ok := listener.(*net.UnixListener); !ok {
			return nil, errors.Join(fmt.Errorf("take the socket that systemd passed: it is of %s", listener.Addr().Network()), listener.Close())
		}
		return listener, nil
	}
	return nil, fmt.Errorf("take the socket that systemd passed: it passed %d", len(files))
}

// States for Notify.
const (
	Ready    = sddaemon.SdNotifyReady
	Stopping = sddaemon.SdNotifyStopping
	Alive    = sddaemon.SdNotifyWatchdog
)

// Notify tells systemd a state of this service; sd_notify(3). Where it does not want to
// know, nothing happens.
func Notify(state string) error {
	_, err := sddaemon.SdNotify(false, state)
	return err
}

// Watchdog returns within what time systemd wants to hear Alive again, 0 where it does
// not; sd_watchdog_enabled(3).
func Watchdog() (time.Duration, error) { return sddaemon.SdWatchdogEnabled(false) }

// ToJournal tells whether the standard error is read by systemd's journal;
// systemd.exec(5), JOURNAL_STREAM.
func ToJournal() bool { return os.Getenv("JOURNAL_STREAM") != "" }

// manager connects to systemd itself, not by way of the message bus, which may not run
// yet or no more. That takes root.
func manager(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	return conn, nil
}

// Serves tells whether the installed units are there and serve the socket at path.
func Serves(ctx context.Context, path string) bool {
	if !Booted() {
		return false
	}
	conn, err := manager(ctx)
	if err != nil {
		return false
	}
	defer conn.Close()
	property, err := conn.GetUnitTypePropertyContext(ctx, Socket, "Socket", "Listen")
	if err != nil {
		return false
	}
	listen, _ := property.Value.Value().([][]any) // pairs of type and address; none of a unit that is not there
	return slices.ContainsFunc(listen, func(l []any) bool { return len(l) == 2 && l[1] == path })
}

// Start starts a unit, waits until it has started and says why it did not.
func Start(ctx context.Context, unit string) error {
	return job(ctx, "start "+unit, func(conn *dbus.Conn, done chan<- string) error {
		_, err := conn.StartUnitContext(ctx, unit, "replace", done)
		return err
	})
}

// StartScope makes a scope below Slice that has a process of ours, which systemd moves
// there, and whose control groups are ours to divide; systemd.scope(5). Where there is
// one of that name already, nothing happens.
func StartScope(ctx context.Context, name, description string, pid int) error {
	properties := []dbus.Property{
		dbus.PropDescription(description),
		dbus.PropSlice(Slice),
		dbus.PropPids(uint32(pid)),
		dbus.PropBefore(Service), // at a shutdown the service ends first, and sees no VMM of its own end
		{Name: "Delegate", Value: godbus.MakeVariant(true)},
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
	err := job(ctx, "start "+name, func(conn *dbus.Conn, done chan<- string) error {
		_, err := conn.StartTransientUnitContext(ctx, name, "fail", properties, done)
		return err
	})
	if is(err, "UnitExists") {
		return nil
	}
	return err
}

// Stop ends a unit with its processes, and returns when it has ended; nil where there
// is none of that name.
func Stop(ctx context.Context, unit string) error {
	err := job(ctx, "stop "+unit, func(conn *dbus.Conn, done chan<- string) error {
		_, err := conn.StopUnitContext(ctx, unit, "replace", done)
		return err
	})
	if is(err, "NoSuchUnit") {
		return nil
	}
	return err
}

// job has systemd do something and waits for the end of it.
func job(ctx context.Context, what string, begin func(*dbus.Conn, chan<- string) error) error {
	ctx, cancel := context.WithTimeout(ctx, jobPatience)
	defer cancel()
	conn, err := manager(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	done := make(chan string, 1)
	if err := begin(conn, done); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s: systemd says %q", what, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// is tells whether systemd answered with an error of this name.
func is(err error, name string) bool {
	e, ok := errors.AsType[godbus.Error](err)
	return ok && strings.TrimPrefix(e.Name, "org.freedesktop.systemd1.") == name
}
