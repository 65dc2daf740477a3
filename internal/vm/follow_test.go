package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLastLines(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for _, tc := range []struct {
		text string
		n    int
		want string
	}{
		{"", 0, ""}, {"", 3, ""},
		{"a\nb\nc\n", 0, ""}, {"a\nb\nc\n", 1, "c\n"}, {"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc\n", 3, "a\nb\nc\n"}, {"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb", 0, ""}, {"a\nb", 1, "b"}, {"a\nb", 2, "a\nb"},
		{"\n\n\n", 1, "\n"}, {"\n\n\n", 2, "\n\n"},
		{"a\n" + long + "\nb\n", 2, long + "\nb\n"}, {"a\n" + long + "\n", 2, "a\n" + long + "\n"}, {long, 1, long},
	} {
		from, err := lastLines(strings.NewReader(tc.text), int64(len(tc.text)), tc.n)
		if err != nil || tc.text[from:] != tc.want {
			t.Errorf("last %d of %.20q: %.20q, %v", tc.n, tc.text, tc.text[from:], err)
		}
	}
}

// TestFollow reads a console that is written, trimmed and deleted meanwhile: nothing
// is read twice, and nothing is left out but what was dropped before it was read.
func TestFollow(t *testing.T) {
	c := &console{path: filepath.Join(t.TempDir(), "console")}
	gone, quit := make(chan struct{}), make(chan struct{})
	r := &follower{ctx: t.Context(), c: c, gone: gone, quit: quit}
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := 0
	write := func(n int) {
		t.Helper()
		for range n {
			if _, err := fmt.Fprintf(f, "line %06d\n", line); err != nil {
				t.Fatal(err)
			}
			line++
		}
	}
	expect := func(from int) {
		t.Helper()
		var want strings.Builder
		for i := from; i < line; i++ {
			fmt.Fprintf(&want, "line %06d\n", i)
		}
		got := make([]byte, want.Len())
		if n, err := io.ReadFull(r, got); err != nil || string(got) != want.String() {
			t.Fatalf("read %d bytes, %v: %.60q, want %.60q", n, err, got, want.String())
		}
	}
	write(100)
	expect(0)
	write(50)
	if err := c.trim(1000, 720); err != nil { // 60 lines of 12 bytes stay
		t.Fatal(err)
	}
	expect(100)
	write(200)
	if err := c.trim(1000, 720); err != nil { // 60 of which not all were read
		t.Fatal(err)
	}
	expect(line - 59) // the first one of 60 is cut off at its end
	write(1)
	close(gone)
	expect(line - 1)
	if n, err := r.Read(make([]byte, 9)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	close(quit)
	if _, err := r.Read(make([]byte, 9)); err == nil || err == io.EOF {
		t.Errorf("the daemon's end is taken for the VM's: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &follower{ctx: ctx, c: &console{path: filepath.Join(t.TempDir(), "none")}, gone: make(chan struct{})}
	if _, err := r.Read(make([]byte, 9)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
