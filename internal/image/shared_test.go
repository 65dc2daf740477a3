package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"banger/api"
)

func TestSimultaneousImports(t *testing.T) {
	m, db, dir := newManager(t)
	data := archive(t, tar.Header{Name: "f", Size: 5000})
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			img, err := m.Import(t.Context(), 0, "of-"+string(rune('a'+i)), bytes.NewReader(data), nil)
			if err != nil {
				t.Error(err)
			}
			ids[i] = img.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("the same content has the ids %q", ids)
		}
	}
	if n := leftovers(t, db, dir); n != 2 { // a row and its directory
		t.Errorf("%d rows and directories for one layer", n)
	}
}

func TestSimultaneousImportsOfOneName(t *testing.T) {
	m, db, dir := newManager(t)
	data := archive(t, tar.Header{Name: "f"})
	in, feed := io.Pipe()
	first := make(chan error)
	go func() {
		_, err := m.Import(t.Context(), 0, "same", in, nil)
		first <- err
	}()
	if _, err := feed.Write(data[:512]); err != nil { // it is under way now
		t.Fatal(err)
	}
	unread := strings.NewReader("not read")
	if _, err := m.Import(t.Context(), 0, "same", unread, nil); api.CodeOf(err) != api.CodeConflict || unread.Len() != 8 {
		t.Errorf("the second import: %v, %d bytes unread", err, unread.Len())
	}
	if _, err := m.Import(t.Context(), 1000, "same", bytes.NewReader(data), nil); err != nil {
		t.Errorf("another user's: %v", err)
	}
	_, err := feed.Write(data[512:])
	check(t, err, feed.Close())
	if err := <-first; err != nil {
		t.Error(err)
	}
	if _, err := m.Import(t.Context(), 0, "same", unread, nil); api.CodeOf(err) != api.CodeAlreadyExists || unread.Len() != 8 {
		t.Errorf("after it: %v, %d bytes unread", err, unread.Len())
	}
	if n := leftovers(t, db, dir); n != 2 {
		t.Errorf("%d rows and directories for one layer", n)
	}
}

// TestStalledImport cancels an import whose archive does not go on.
func TestStalledImport(t *testing.T) {
	data := archive(t, tar.Header{Name: "f", Size: 500_000})
	for name, sent := range map[string]int{"before its first byte": 0, "in a file": 400_000} {
		t.Run(name, func(t *testing.T) {
			m, db, dir := newManager(t)
			in, feed := io.Pipe()
			defer feed.Close()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				_, err := m.Import(ctx, 0, "stalled", in, nil)
				ended <- err
			}()
			_, err := feed.Write(data[:sent])
			check(t, err)
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if n := leftovers(t, db, dir); n != 0 {
				t.Errorf("%d rows and directories are left", n)
			}
			if _, err := m.Import(t.Context(), 0, "stalled", bytes.NewReader(data), nil); err != nil {
				t.Errorf("the name is not free: %v", err)
			}
		})
	}
}

// TestWhoseImage has images of the same name of several users.
func TestWhoseImage(t *testing.T) {
	m, _, _ := newManager(t)
	for owner, names := range map[uint32][]string{0: {"shared"}, 1000: {"shared", "mine", "twice"}, 1001: {"twice"}} {
		for _, name := range names {
			if _, err := m.Import(t.Context(), owner, name, bytes.NewReader(archive(t, tar.Header{Name: "f"})), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		caller uint32
		name   string
		owner  uint32
		code   api.Code
	}{
		{0, "shared", 0, ""}, {0, "shared@1000", 1000, ""}, {0, "mine", 1000, ""}, {0, "mine@1000", 1000, ""},
		{0, "mine@0", 0, api.CodeNotFound}, {0, "twice", 0, api.CodeInvalid}, {0, "twice@1001", 1001, ""},
		{1000, "shared", 1000, ""}, {1000, "shared@0", 0, ""}, {1000, "twice", 1000, ""}, {1000, "twice@1001", 0, api.CodeNotFound},
		{1002, "shared", 0, ""}, {1002, "mine", 0, api.CodeNotFound}, {1002, "mine@1000", 0, api.CodeNotFound},
		{0, "shared@", 0, api.CodeNotFound}, {0, "shared@00", 0, api.CodeNotFound},
	} {
		img, err := m.Get(t.Context(), c.caller, c.name)
		switch {
		case c.code != "" && api.CodeOf(err) != c.code:
			t.Errorf("%d asks for %q: got %v", c.caller, c.name, err)
		case c.code == "" && (err != nil || img.Owner != c.owner):
			t.Errorf("%d asks for %q: got that of %d, %v", c.caller, c.name, img.Owner, err)
		}
	}
	for _, c := range []struct {
		caller uint32
		name   string
		code   api.Code
	}{
		{1002, "shared", api.CodePermissionDenied}, {1000, "shared@0", api.CodePermissionDenied}, {1001, "mine", api.CodeNotFound},
		{0, "mine", api.CodePermissionDenied}, {0, "mine@1000", ""}, {0, "mine@1000", api.CodeNotFound}, {1000, "shared", ""}, {0, "shared", ""},
	} {
		err := m.Remove(t.Context(), c.caller, c.name)
		if c.code == "" && err != nil || c.code != "" && api.CodeOf(err) != c.code {
			t.Errorf("%d removes %q: got %v", c.caller, c.name, err)
		}
	}
	left, err := m.List(t.Context(), 0)
	if err != nil || len(left) != 2 {
		t.Errorf("left are %v, %v", left, err)
	}
	if _, err := m.Import(t.Context(), 0, "a@0", strings.NewReader(""), nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a name that says whose: got %v", err)
	}
}
