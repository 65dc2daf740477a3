package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDropHead(t *testing.T) {
	line := func(i int) string { return fmt.Sprintf("line %06d\n", i) } // 12 bytes
	path := filepath.Join(t.TempDir(), "console.log")
	vmm, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer vmm.Close()
	for i := range 1000 {
		if _, err := vmm.WriteString(line(i)); err != nil {
			t.Fatal(err)
		}
	}
	whole, _ := os.ReadFile(path)
	if _, err := dropHead(path, 12000, 100); err != nil { // which is just enough
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("a file that is not too long was changed: %v", err)
	}
	if _, err := dropHead(path, 11999, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := vmm.WriteString(line(1000)); err != nil { // the VMM goes on
		t.Fatal(err)
	}
	want := ""
	for i := 992; i <= 1000; i++ {
		want += line(i)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("left: %q, %v; want %q", got, err, want)
	}
	if got, err := readTail(path, 12); err != nil || string(got) != line(1000) {
		t.Errorf("the end: %q, %v", got, err)
	}
	if got, err := readTail(path, 1<<20); err != nil || string(got) != want {
		t.Errorf("all of it: %q, %v", got, err)
	}
}

// A guest need not write lines.
func TestDropHeadWithoutLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	for _, end := range []string{"", "\n"} {
		text := strings.Repeat("x", 5000) + end
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dropHead(path, 1000, 100); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text[len(text)-100:] {
			t.Errorf("left: %q, %v", got, err)
		}
	}
	if _, err := dropHead(path+"-none", 1, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestAgentSaid(t *testing.T) {
	for _, tc := range []struct{ console, want string }{
		{"", ""},
		{"[    1.0] reboot: Power down\r\n", ""},
		{"[ 1.0] x\r\n\r\nbanger-agent: no such disk; powering off\r\n[    1.0] reboot: Power down\r\n", "no such disk"},
		{"\nbanger-agent: first; powering off\n[1] reboot: Power down\n\nbanger-agent: second; powering off", "second"},
		{"\nbanger-agent: the agent ended; starting it again\n", ""},
		{"echo banger-agent: not at the line's start; powering off\n", ""},
	} {
		if got, ok := agentSaid(tc.console); ok != (tc.want != "") || ok && got != tc.want {
			t.Errorf("%q: got %q, %v; want %q", tc.console, got, ok, tc.want)
		}
	}
}

func TestRebooted(t *testing.T) {
	for console, want := range map[string]bool{
		"\nbanger-agent: off\n[  1.6] reboot: Restarting system\r\n":                false,
		"\nbanger-agent: off\nx\ny\nz\nmore\n[  1.6] reboot: Restarting system\r\n": true,
		"":                                      false,
		"[  1.6] reboot: Power down\r\n":        false,
		"[  1.6] reboot: Restarting system\r\n": true,
		"[  1.6] reboot: Restarting system\r\n[ 0.1] x\n[  1.6] reboot: Power down\n": false,
		"[  1.6] reboot: Power down\n[ 0.1] x\n[  1.6] reboot: Restarting system":     true,
	} {
		if got := rebooted(console); got != want {
			t.Errorf("%q: got %v", console, got)
		}
		if got := poweredOff(console); got != (!want && console != "") {
			t.Errorf("%q: powered off: %v", console, got)
		}
	}
}
