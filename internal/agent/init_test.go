package agent

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

func TestFindInit(t *testing.T) {
	dir := t.TempDir()
	file, program, link, broken := dir+"/file", dir+"/program", dir+"/link", dir+"/broken"
	for _, err := range []error{
		os.WriteFile(file, nil, 0o644), os.WriteFile(program, nil, 0o755), os.Symlink("program", link), os.Symlink("gone", broken),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{program, link} {
		if got, err := findInit([]string{broken, dir, file, want, "/bin/sh"}); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if got, err := findInit([]string{file, broken}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.Mkdir(dir+"/etc", 0o755), os.Symlink("/run/elsewhere", dir+"/etc/machine-id")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	id := strings.Repeat("0a", 16)
	if err := identify(dir, "", id); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/etc/machine-id"); err != nil || string(got) != id+"\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := os.Lstat(dir + "/etc/hostname"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty name was written: %v", err)
	}
	for _, bad := range []string{"x", id[1:], id + "00"} {
		if err := identify(dir, "", bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
