package cli

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func left(i *interrupts) bool {
	select {
	case <-i.leave:
		return true
	default:
		return false
	}
}

func TestSignalBeforeTheCommandCancels(t *testing.T) {
	i := newInterrupts(t.Context())
	i.handle(syscall.SIGTERM)
	if why := context.Cause(i.ctx); why != (interrupted{syscall.SIGTERM}) {
		t.Errorf("cancelled by %v", why)
	}
	if left(i) {
		t.Error("the first signal did not wait")
	}
	if err := i.serve(make(chan string, 1)); err != (interrupted{syscall.SIGTERM}) {
		t.Errorf("the command began after it: %v", err)
	}
	i.handle(syscall.SIGINT)
	if !left(i) {
		t.Error("the second signal waited")
	}
}

func TestSignalsGoToTheCommand(t *testing.T) {
	i := newInterrupts(t.Context())
	at := &clock{time.Now()}
	i.now = at.now
	guest := make(chan string, 8)
	if err := i.serve(guest); err != nil {
		t.Fatal(err)
	}
	for range 6 { // patiently
		i.handle(syscall.SIGINT)
		at.pass(impatientWithin)
	}
	if left(i) || len(guest) != 6 || i.ctx.Err() != nil {
		t.Errorf("%d signals reached the guest, context %v", len(guest), i.ctx.Err())
	}
	at.pass(time.Hour)
	for range impatient {
		i.handle(syscall.SIGTERM)
	}
	if !left(i) {
		t.Error("three signals at once did not end the command line")
	}
	i.served()
	i.handle(syscall.SIGINT)
	if !left(i) {
		t.Error("a signal after the command was lost")
	}
}

// Ctrl-C on a raw terminal is a byte; it ends the command line when several of them
// did not arrive.
func TestKeyboard(t *testing.T) {
	for _, test := range []struct {
		name    string
		arrives bool
		apart   time.Duration
		want    bool
	}{
		{"the guest takes them", true, time.Second, false},
		{"the guest takes nothing", false, time.Second, true},
		{"pressed at once", false, time.Millisecond, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			hung := false
			at := &clock{time.Now()}
			k := &keyboard{Reader: strings.NewReader("ls\x03x\x03\x03"), hangUp: func() { hung = true }, now: at.now}
			for n := range int64(6) {
				if _, err := k.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				if test.arrives {
					k.arrived(n + 1)
				}
				at.pass(test.apart)
			}
			if hung != test.want {
				t.Errorf("hung up: %v", hung)
			}
		})
	}
}

func TestReport(t *testing.T) {
	d, _, stderr := without(t)
	err := failures{exitError(42), interrupted{syscall.SIGINT}}
	if status := d.report(err); status != 42 || stderr.String() != "banger: interrupted\n" {
		t.Errorf("status %d, %q", status, stderr)
	}
	if status := d.report(interrupted{syscall.SIGHUP}); status != 129 {
		t.Errorf("status %d", status)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTableKeepsItsLines(t *testing.T) {
	d, stdout, _ := without(t)
	if err := d.table([]string{"NAME", "ERROR"}, [][]string{{"api", "bad\nnews\x1b[2J\tthere"}}); err != nil {
		t.Fatal(err)
	}
	if want := "NAME  ERROR\napi   bad news [2J there\n"; stdout.String() != want {
		t.Errorf("got %q, want %q", stdout.String(), want)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("OURS", "a value")
	file := t.TempDir() + "/env"
	write(t, file, "# comment\n\nA=1\r\n  B = 2\nOURS\nNOT_SET_ANYWHERE\nC=x=y # kept\n")
	got, err := environment([]string{"A=3", "OURS"}, []string{file})
	if err == nil || !strings.Contains(err.Error(), `"B = 2"`) {
		t.Errorf("a name with a space: %v, %v", got, err)
	}
	write(t, file, "# comment\n\nA=1\r\nOURS\nNOT_SET_ANYWHERE\nC=x=y # kept\n")
	got, err = environment([]string{"A=3", "OURS", "EMPTY="}, []string{file})
	want := []string{"A=1", "OURS=a value", "C=x=y # kept", "A=3", "OURS=a value", "EMPTY="}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	write(t, file, string(bytes.Repeat([]byte("A=1\n"), maxEnvFile)))
	if _, err := environment(nil, []string{file}); err == nil {
		t.Error("a file without end was read")
	}
}
