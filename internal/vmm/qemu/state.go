package qemu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/vmm"
)

// stateFile is the name of a snapshot's only file: the stream of a migration, in which
// a page of zeroes takes some bytes, and a trailer. QEMU gets it through a pipe, since
// it may open nothing, and so that the daemon bounds and checks it.
const stateFile = "state"

// trailer ends a stateFile: a mark, how long the stream before it is, and its CRC-32C.
const (
	trailerMark = "bangerQ1"
	trailerSize = len(trailerMark) + 8 + 4
)

func trailer(n int64, sum hash.Hash32) []byte {
	t := binary.LittleEndian.AppendUint64([]byte(trailerMark), uint64(n))
	return binary.LittleEndian.AppendUint32(t, sum.Sum32())
}

func newSum() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// maxState is the most that the state of a machine can take, in bytes: each page once
// with its header, and its devices.
func maxState(memory int64) int64 { return memory + memory/128 + 64<<20 }

// Pause implements vmm.Instance. QEMU hands over what is to be written before it answers.
func (i *instance) Pause(ctx context.Context) error {
	_, err := i.monitor(ctx, command{Execute: "stop"})
	return api.About(err, "pause machine")
}

// Resume implements vmm.Instance.
func (i *instance) Resume(ctx context.Context) error {
	_, err := i.monitor(ctx, command{Execute: "cont"})
	return api.About(err, "resume machine")
}

// Snapshot implements vmm.Instance.
func (i *instance) Snapshot(ctx context.Context, dir string) error {
	err := i.save(ctx, filepath.Join(dir, stateFile))
	if err == nil {
		err = linux.SyncFile(dir)
	}
	return api.About(err, "write state of machine")
}

func (i *instance) save(ctx context.Context, path string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer from.Close()
	written := make(chan error, 1)
	go func() {
		err := store(f, from, maxState(i.m.Memory))
		from.Close() // has QEMU hear of it
		written <- err
	}()
	_, err = i.monitor(ctx,
		command{Execute: "migrate-set-parameters", Arguments: map[string]any{"max-bandwidth": int64(math.MaxInt64)}},
		command{Execute: "getfd", Arguments: map[string]any{"fdname": stateFile}, file: to},
		command{Execute: "migrate", Arguments: map[string]any{"uri": "fd:" + stateFile}},
	)
	to.Close()
	if err == nil {
		err = i.awaitMigrated(ctx)
	}
	if err != nil {
		from.Close()
		i.cancelMigration()
	}
	if werr := <-written; werr != nil {
		return werr // of which what QEMU says is the consequence
	}
	return err
}

// cancelMigration has QEMU give a migration up, where it has not done so by itself.
func (i *instance) cancelMigration() {
	ctx, cancel := context.WithTimeout(context.Background(), qmpTimeout)
	defer cancel()
	_, _ = i.monitor(ctx, command{Execute: "migrate_cancel"}) // it is paused, and the pipe has an end
}

// store writes a stream of at most limit bytes, and its trailer, to f.
func store(f *os.File, stream io.Reader, limit int64) error {
	sum := newSum()
	n, err := io.CopyBuffer(io.MultiWriter(plain{f}, sum), io.LimitReader(stream, limit+1), make([]byte, 1<<20))
	switch {
	case err != nil:
		return err
	case n > limit:
		return fmt.Errorf("it has more than %d bytes", limit)
	}
	if _, err := f.Write(trailer(n, sum)); err != nil {
		return err
	}
	return f.Sync()
}

// plain is a writer that is nothing else.
type plain struct{ io.Writer }

// awaitMigrated waits until QEMU has written all of its state.
func (i *instance) awaitMigrated(ctx context.Context) error {
	for {
		answer, err := i.monitor(ctx, command{Execute: "query-migrate"})
		if err != nil {
			return err
		}
		var m struct {
			Status string
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(answer, &m); err != nil {
			return err
		}
		switch m.Status {
		case "completed":
			return nil
		case "failed", "cancelled", "cancelling":
			return fmt.Errorf("the VMM gave it up: %s %q", m.Status, m.Desc)
		}
		select {
		case <-i.Exited():
			return errors.New("the VMM has ended")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, m vmm.Machine, dir string) (vmm.Instance, error) {
	state, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	defer state.Close()
	size, end, err := readTrailer(state)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", state.Name(), err)
	}
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer to.Close()
	fed := make(chan error, 1)
	i, err := d.launch(ctx, m, from, func(ctx context.Context, i *instance) error {
		go func() {
			fed <- feed(to, io.LimitReader(state, size), size, end)
			to.Close()
		}()
		err := i.await(ctx, restoreTimeout, "paused")
		if err != nil {
			to.Close()
		}
		if damage := <-fed; damage != nil { // of which the VMM need not have heard
			err = errors.Join(fmt.Errorf("read %s: %w", state.Name(), damage), err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := failpoint.Pass("qemu", "restored"); err != nil {
		i.Kill()
		return nil, err
	}
	return i, nil
}

// readTrailer returns how long the stream before the trailer is, and the trailer.
func readTrailer(f *os.File) (n int64, end []byte, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, nil, err
	}
	end = make([]byte, trailerSize)
	n = info.Size() - int64(trailerSize)
	if n >= 0 {
		_, err = f.ReadAt(end, n)
	}
	if err != nil || n < 0 || string(end[:len(trailerMark)]) != trailerMark || binary.LittleEndian.Uint64(end[len(trailerMark):]) != uint64(n) {
		return 0, nil, errors.Join(errors.New("it is not complete, or not a machine's state"), err)
	}
	return n, end, nil
}

// feed hands a stream to a VMM, which may have enough before its end, and checks it.
func feed(to io.Writer, stream io.Reader, n int64, end []byte) error {
	sum := newSum()
	stream = io.TeeReader(stream, sum)
	if _, err := io.CopyBuffer(plain{to}, stream, make([]byte, 1<<20)); err != nil {
		if _, err := io.Copy(io.Discard, stream); err != nil {
			return err
		}
	}
	if string(trailer(n, sum)) != string(end) {
		return errors.New("it is damaged: its checksum is another")
	}
	return nil
}
