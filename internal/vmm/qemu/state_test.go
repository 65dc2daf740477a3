package qemu

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// restored returns what a VMM would be fed of a file, and whether that is taken for whole.
func restored(t *testing.T, path string) (string, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, end, err := readTrailer(f)
	if err != nil {
		return "", err
	}
	var fed bytes.Buffer
	err = feed(&fed, io.LimitReader(f, n), n, end)
	return fed.String(), err
}

// TestState writes a stream as a snapshot has it. Whatever is changed in the file, cut off
// or added is found.
func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), stateFile)
	stream := strings.Repeat("memory of a machine ", 12)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := store(f, iotest.HalfReader(strings.NewReader(stream)), int64(len(stream))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if fed, err := restored(t, path); err != nil || fed != stream {
		t.Fatalf("%q, %v", fed, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil || string(whole[:len(stream)]) != stream {
		t.Fatalf("%q, %v", whole, err)
	}
	damaged := func(what string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := restored(t, path); err == nil {
			t.Errorf("not found: %s", what)
		}
	}
	for i := range whole {
		text := bytes.Clone(whole)
		text[i] ^= 0x10
		damaged("a bit was changed", text)
		damaged("the end is missing", whole[:i])
	}
	damaged("something was added", append(bytes.Clone(whole), 0))
	damaged("the beginning is missing", whole[1:])

	// A VMM that has enough before the end does not keep the rest from being checked.
	enough := writerOf(func([]byte) (int, error) { return 0, io.ErrClosedPipe })
	if err := feed(enough, bytes.NewReader(whole[:len(stream)]), int64(len(stream)), whole[len(stream):]); err != nil {
		t.Error(err)
	}
	if err := feed(enough, bytes.NewReader(whole[:len(stream)-1]), int64(len(stream)), whole[len(stream):]); err == nil {
		t.Error("what the VMM did not read was not checked")
	}
}

type writerOf func([]byte) (int, error)

func (w writerOf) Write(p []byte) (int, error) { return w(p) }

// TestStateBounded has a VMM that writes without end.
func TestStateBounded(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	endless := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(io.ErrUnexpectedEOF))
	if err := store(f, endless, 1000); err == nil || !strings.Contains(err.Error(), "more than 1000 bytes") {
		t.Error(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() > 1001 {
		t.Errorf("%v, %v", info, err)
	}
}
