package image_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"banger/api"
)

// TestOneLargeImageAtATime has an owner import two images of many files: the second waits
// until the first has ended, which small ones and those of others do not.
func TestOneLargeImageAtATime(t *testing.T) {
	m, db, dir := newManager(t)
	m.MaxEntries = 100_000
	var entries []tar.Header
	for i := range 12_000 {
		entries = append(entries, fileEntry(fmt.Sprint(i), 0))
	}
	large := archive(t, entries...)
	small := archive(t, fileEntry("a", 10))
	pr, pw := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := m.Import(t.Context(), 1, "first", pr, nil)
		pr.CloseWithError(err)
		first <- err
	}()
	_, err := pw.Write(large[:len(large)-1]) // whose last byte is long in coming
	check(t, err)

	waits, second := make(chan struct{}, 1000), make(chan error, 1)
	go func() {
		_, err := m.Import(t.Context(), 1, "second", bytes.NewReader(saved(t, ociImage(t, small, large))), func(p api.Progress) {
			if p.Step == "wait for another image, which is large" {
				waits <- struct{}{}
			}
		})
		second <- err
	}()
	select {
	case <-waits:
	case err := <-second:
		t.Fatalf("the second did not wait: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the second neither waits nor ends")
	}
	_, err = m.Import(t.Context(), 1, "small", bytes.NewReader(small), nil)
	check(t, err)
	_, err = m.Import(t.Context(), 2, "other", bytes.NewReader(large), nil)
	check(t, err)

	_, err = pw.Write(large[len(large)-1:])
	check(t, err)
	check(t, pw.Close())
	check(t, <-first)
	check(t, <-second)
	for owner, names := range map[uint32][]string{1: {"first", "second", "small"}, 2: {"other"}} {
		for _, name := range names {
			check(t, m.Remove(t.Context(), owner, name))
		}
	}
	if n := leftovers(t, db, dir); n != 0 {
		t.Errorf("%d rows and directories are left", n)
	}
}
