package agent

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNameHost(t *testing.T) {
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, test := range map[string]struct{ before, name, after string }{
		"none":         {"", "api", local + "127.0.1.1\tapi # the name of this VM\n"},
		"known":        {"10.0.0.1 api other\n", "api", "10.0.0.1 api other\n"},
		"added":        {"127.0.0.1 localhost\n# mine", "api", "127.0.0.1 localhost\n# mine\n127.0.1.1\tapi # the name of this VM\n"},
		"renamed":      {"127.0.0.1 localhost\n127.0.1.1\tapi # the name of this VM\n", "web", "127.0.0.1 localhost\n127.0.1.1\tweb # the name of this VM\n"},
		"user's entry": {"127.0.0.1 localhost\n127.0.1.1 mine\n", "web", "127.0.0.1 localhost\n127.0.1.1 mine\n127.0.1.1\tweb # the name of this VM\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "etc", "hosts")
			if test.before != "" {
				if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(test.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := nameHost(dir, test.name); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(file); err != nil || string(got) != test.after {
					t.Errorf("got %q, %v; want %q", got, err, test.after)
				}
			}
		})
	}
}

// An image whose /etc/hosts leads out of it, or is no file, boots all the same.
func TestNameHostOfHostileImage(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(outside, []byte("10.0.0.1 keep\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "etc", "hosts")); err != nil {
		t.Fatal(err)
	}
	if err := nameHost(dir, "api"); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "10.0.0.1 keep\n" {
		t.Errorf("what it leads to has become %q, %v", got, err)
	}
}
