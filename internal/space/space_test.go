package space_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/space"
)

// small is a file system of 4 MiB.
func small(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "banger-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return dir
}

func TestAdmit(t *testing.T) {
	dir := small(t)
	write := func(n int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		used    int
		reserve int64
		need    int64
		refused string // a part of the error
	}{
		"all of it":              {0, 0, 4 << 20, ""},
		"too much":               {0, 0, 4<<20 + 1, "needs 4MiB, and " + dir + " has 4MiB available, of which 0B are kept free"},
		"into the reserve":       {0, 1 << 20, 3<<20 + 1, "of which 1MiB are kept free"},
		"up to the reserve":      {0, 1 << 20, 3 << 20, ""},
		"nothing is needed":      {3<<20 + 4096, 1 << 20, 0, "has 1020KiB available"},
		"the default reserve":    {0, -1, 4 << 20, "of which 204.8KiB are kept free"},
		"beside the default one": {0, -1, 3800 << 10, ""},
	} {
		t.Run(name, func(t *testing.T) {
			write(tc.used)
			err := space.Room{Dir: dir, Reserve: tc.reserve}.Admit("do it", tc.need)
			if tc.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			e := api.AsError(err)
			if e == nil || e.Code != api.CodeNoSpace || !strings.Contains(e.Message, tc.refused) || !strings.Contains(e.Hint, "banger system df") {
				t.Errorf("got %v, want %q", err, tc.refused)
			}
		})
	}
	if err := (space.Room{}).Admit("do it", 1<<60); err != nil {
		t.Errorf("the zero Room: %v", err)
	}
}

func TestCounter(t *testing.T) {
	dir := t.TempDir()
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	if _, err := sparse.WriteAt(make([]byte, 8192), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(sparse.Name(), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	c := space.NewCounter()
	if n, err := c.Bytes(sparse.Name()); err != nil || n < 8192 || n > 64<<10 {
		t.Errorf("a sparse file: %d, %v", n, err)
	}
	for _, path := range []string{filepath.Join(dir, "link"), sparse.Name(), filepath.Join(dir, "none")} {
		if n, err := c.Bytes(path); err != nil || n != 0 {
			t.Errorf("%s: %d, %v", path, n, err)
		}
	}
}
