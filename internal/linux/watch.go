package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchPause is how long a writer is let alone after it has written: one of single bytes,
// such as the serial port of a guest, would else keep its watcher as busy as itself.
const watchPause = 100 * time.Millisecond

// WatchFile calls changed for what has been written to a file, soon and once for all that
// was written since it was called last, and at the beginning, until ctx ends or changed says
// that it has seen enough; inotify(7). Between two calls a write costs nothing more.
func WatchFile(ctx context.Context, path string, changed func() (enough bool)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	events := os.NewFile(uintptr(fd), "inotify of "+path)
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	buf := make([]byte, 4<<10)
	for {
		var werr error
		raw, err := events.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { _, werr = unix.InotifyAddWatch(int(fd), path, unix.IN_MODIFY|unix.IN_ONESHOT) })
		}
		if err = errors.Join(err, werr); err != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("watch %s: %w", path, err))
		}
		if changed() { // what is written from now on is an event
			return nil
		}
		if _, err := events.Read(buf); err != nil {
			return errors.Join(ctx.Err(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchPause):
		}
	}
}
