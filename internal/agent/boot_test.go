package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDirectory resolves names in the tree of a hostile image; none may lead out.
func TestDirectory(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"usr/lib", "a/b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"lib": "usr/lib", "abs": "/usr/lib", "up": "../../../../usr/lib", "a/up": "../../..", "a/here": ".", "out": outside,
		"loop": "loop", "ping": "pong", "pong": "ping", "file": "usr/file", "slashes": "//usr///lib//", "chain": "lib",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"proc": "proc", "lib/modules": "usr/lib/modules", "abs/x": "usr/lib/x", "up/y": "usr/lib/y", "a/up/z": "z", "chain/c": "usr/lib/c",
		"a/here/b": "a/b", "out/new": strings.TrimPrefix(outside, "/") + "/new", "slashes/s": "usr/lib/s", "../../etc": "etc", "a/../n": "n", "": "",
	} {
		got, err := directory(root, name)
		if err != nil || got != filepath.Join(root, want) {
			t.Errorf("%q: got %q, %v; want %q in the root", name, got, err, want)
			continue
		}
		if info, err := os.Lstat(got); err != nil || !info.IsDir() {
			t.Errorf("%q: %v, %v", name, info, err)
		}
	}
	for _, name := range []string{"loop", "loop/x", "ping", "file", "file/x", "usr/file/x"} {
		if got, err := directory(root, name); err == nil {
			t.Errorf("%q: got %q", name, got)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside of the root: %v, %v", left, err)
	}
}
