package firecracker

import (
	"bytes"
	"context"
	"io"
	"os"
	"syscall"
	"time"

	"banger/internal/linux"
)

// offWords are the last ones of a kernel that has switched its machine off.
var offWords = []byte("reboot: Power down")

// offPatience is how long nothing may come after offWords until they are believed.
const offPatience = 500 * time.Millisecond

// watchConsole ends the VMM of a guest that has switched its machine off: Firecracker has
// no switch, so the CPUs would stand still for ever.
func (i *instance) watchConsole() {
	ctx, cancel := context.WithCancel(i.closed)
	defer cancel()
	go func() {
		select {
		case <-i.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = linux.WatchFile(ctx, i.m.Console, func() bool {
		if !saysOff(i.m.Console) {
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(offPatience):
		}
		if ctx.Err() == nil && saysOff(i.m.Console) {
			i.SwitchOff()
			return true
		}
		return ctx.Err() != nil
	}) // a console that cannot be watched is one of a guest that has to be killed
}

// saysOff says whether a console ends with a kernel's last words.
func saysOff(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false
	}
	end := make([]byte, min(size, 64))
	if _, err := f.ReadAt(end, size-int64(len(end))); err != nil {
		return false
	}
	return bytes.HasSuffix(bytes.TrimRight(end, "\r\n"), offWords)
}
