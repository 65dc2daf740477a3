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
// that it has seen enough; inotify(7).
func WatchFile(ctx context.Context, path string, changed func() (enough bool)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	events := os.NewFile(uintptr(fd), "inotify of "+path)
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	buf := make([]byte, 4<<10)
	for !changed() {
		if _, err := events.Read(buf); err != nil {
			return errors.Join(ctx.Err(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchPause):
		}
	}
	return nil
}
