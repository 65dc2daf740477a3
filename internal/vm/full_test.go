package vm_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

// TestFullDisk has ever more pages free in the state directory's file system, until
// an action finds room: up to then each of its writes has been the first that does not
// fit. It says so, has left nothing, and the daemon goes on.
func TestFullDisk(t *testing.T) {
	from := seed(t)
	serveImage(t)
	for _, name := range []string{"create", "start", "suspend", "promote", "image import", "image pull", "kernel import"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := emptyWorld(t)
			w.whole = true
			hosttest.MountTmpfs(t, w.state, "64M")
			w.sow(from)
			w.must(w.boot(0))
			a := actions[name]
			w.prepare(a)
			pids, refusals := w.pids(), 0
			for free := int64(0); ; free += pageSize {
				w.must(w.fill(free))
				err := a.do(w)
				w.must(os.Remove(w.ballast()))
				if err == nil {
					break
				}
				refusals++
				if api.CodeOf(err) != api.CodeNoSpace || strings.Contains(err.Error(), "\n") || !aboutSomething.MatchString(err.Error()) {
					t.Errorf("%d bytes free: %+v", free, api.AsError(err))
				}
				if a.undone != nil {
					if err := a.undone(w); err != nil {
						t.Errorf("%d bytes free: %v", free, err)
					}
				}
				w.agree()
				if t.Failed() || free > 32<<20 {
					t.Fatalf("%s", w.log.text)
				}
			}
			t.Logf("refused with up to %d pages free", refusals)
			if refusals < 10 {
				t.Errorf("refused %d times only: was it ever full?", refusals)
			}
			w.afterwards(name, pids)
			w.down()
		})
	}
}

const pageSize = 4096

func (w *world) ballast() string { return filepath.Join(w.state, "ballast") }

// fill leaves so many bytes free in the state directory's file system.
func (w *world) fill(free int64) error {
	fs, err := linux.FileSystemOf(w.state)
	if err != nil {
		return err
	}
	f, err := os.Create(w.ballast())
	if err != nil {
		return err
	}
	chunk := make([]byte, 1<<20)
	for left := fs.Available - free; left > 0 && err == nil; {
		var n int
		n, err = f.Write(chunk[:min(left, int64(len(chunk)))])
		left -= int64(n)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("leave %d bytes free: %w", free, err)
	}
	return nil
}
