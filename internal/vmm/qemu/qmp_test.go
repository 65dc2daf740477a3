package qemu

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// converse runs a command against a monitor that says lines, the first at once
// and each of the others after a command.
func converse(t *testing.T, lines ...string) (string, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		commands := bufio.NewReader(theirs)
		for i, line := range lines {
			if i > 0 {
				if _, err := commands.ReadString('\n'); err != nil {
					return
				}
			}
			if _, err := theirs.Write([]byte(line + "\n")); err != nil {
				return
			}
		}
	}()
	got, err := qmp(t.Context(), ours, command{Execute: "query-status"})
	return string(got), err
}

const greeting = `{"QMP": {"version": {}, "capabilities": []}}`

func TestQMP(t *testing.T) {
	for _, tc := range []struct {
		name       string
		lines      []string
		want, fail string
	}{
		{"answer", []string{greeting, `{"return": {}}`, `{"return": {"running": true}}`}, `{"running": true}`, ""},
		{"events between", []string{greeting, `{"return": {}}`, `{"event": "RESUME"}` + "\n" + `{"event": "STOP"}` + "\n" + `{"return": 1}`}, "1", ""},
		{"error", []string{greeting, `{"return": {}}`, `{"error": {"class": "GenericError", "desc": "no such thing"}}`}, "", "no such thing"},
		{"events before", []string{greeting, `{"event": "RESUME"}` + "\n" + `{"return": {}}`, `{"return": 2}`}, "2", ""},
		{"neither", []string{greeting, `{}`}, "", "neither answer nor event"},
		{"other JSON", []string{greeting, `[1]`}, "", "qmp qmp_capabilities"},
		{"cut off", []string{greeting, `{"return": {}}`, `{"return": `}, "", "qmp query-status"},
		{"endless greeting", []string{strings.Repeat("x", qmpLine)}, "", "qmp greeting"},
		{"endless events", []string{greeting, strings.Repeat(`{"event": "X"}`+"\n", qmpLine/14)}, "", "qmp qmp_capabilities"},
		{"end after greeting", []string{greeting}, "", "qmp qmp_capabilities"},
		{"no greeting", nil, "", "qmp greeting"},
		{"nonsense", []string{greeting, "nonsense"}, "", "qmp qmp_capabilities"},
		{"endless line", []string{greeting, `{"return": "` + strings.Repeat("x", qmpLine) + `"}`}, "", "qmp qmp_capabilities"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := converse(t, tc.lines...)
			if got != tc.want || (err == nil) != (tc.fail == "") || err != nil && !strings.Contains(err.Error(), tc.fail) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tc.want, tc.fail)
			}
		})
	}
}

// A monitor that says nothing does not hold a caller who has given up.
func TestQMPCancelled(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := qmp(ctx, ours, command{Execute: "query-status"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A monitor that falls silent is given up after a while, whatever it said before.
func TestQMPSilent(t *testing.T) {
	for _, said := range []string{"", greeting + "\n", greeting} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			go func() {
				_, _ = theirs.Write([]byte(said))
				_, _ = io.Copy(io.Discard, theirs)
			}()
			start := time.Now()
			_, err := qmp(t.Context(), ours, command{Execute: "query-status"})
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != qmpTimeout {
				t.Errorf("after %q: %v after %v", said, err, time.Since(start))
			}
		})
	}
}
