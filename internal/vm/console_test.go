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
	if err := dropHead(path, 12000, 100); err != nil { // which is just enough
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("a file that is not too long was changed: %v", err)
	}
	if err := dropHead(path, 11999, 100); err != nil {
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
		if err := dropHead(path, 1000, 100); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text[len(text)-100:] {
			t.Errorf("left: %q, %v", got, err)
		}
	}
	if err := dropHead(path+"-none", 1, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
