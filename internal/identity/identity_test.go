package identity

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

func load(t *testing.T, dir string) (id string, minted bool) {
	t.Helper()
	i, minted, err := Load(dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !wellFormed(i.ID) {
		t.Errorf("id %q", i.ID)
	}
	if !minted {
		return i.ID, false
	}
	if again, minted, err := Load(dir, t.TempDir()); err != nil || !minted || again.ID == i.ID {
		t.Errorf("before it is saved: %+v, minted %v, %v; want another one", again, minted, err)
	}
	if err := i.save(dir); err != nil {
		t.Fatal(err)
	}
	return i.ID, minted
}

func TestMintedOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first, minted := load(t, dir)
	if !minted {
		t.Error("a new directory's id was not minted")
	}
	if again, minted := load(t, dir); minted || again != first {
		t.Errorf("the second time: %q, minted %v; want %q", again, minted, first)
	}
	if info, err := os.Stat(filepath.Join(dir, "installation.json")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}

	// A renamed directory is the same installation, a copied one another.
	moved := dir + "-moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if again, minted := load(t, moved); minted || again != first {
		t.Errorf("moved: %q, minted %v; want %q", again, minted, first)
	}
	if out, err := exec.Command("cp", "-a", moved, dir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	second, minted := load(t, dir)
	if !minted || second == first {
		t.Errorf("copied: %q, minted %v; want another than %q", second, minted, first)
	}
	if again, minted := load(t, dir); minted || again != second {
		t.Errorf("the copy again: %q, minted %v; want %q", again, minted, second)
	}
	if again, minted := load(t, moved); minted || again != first {
		t.Errorf("the original after all: %q, minted %v; want %q", again, minted, first)
	}
}

func TestDamaged(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "garbage": "\x00\x01", "cut off": `{"id":"01234567","dev`, "no id": `{"device":1,"inode":2}`,
		"hostile id": `{"id":"../../x"}`, "long id": `{"id":"0123456789"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "installation.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := Load(dir, t.TempDir())
			if e := api.AsError(err); e == nil || !strings.Contains(e.Message, path) || e.Hint == "" {
				t.Errorf("got %v, want an error that names the file, with a hint", err)
			}
			if after, _ := os.ReadFile(path); string(after) != text {
				t.Errorf("it was overwritten with %q", after)
			}
		})
	}
}

func TestNoDirectory(t *testing.T) {
	if _, _, err := Load(filepath.Join(t.TempDir(), "none"), t.TempDir()); err == nil {
		t.Error("no error")
	}
}

// TestSecondCopy loses the file, or damages it, with a second copy of this directory or
// of another.
func TestSecondCopy(t *testing.T) {
	for name, tc := range map[string]struct {
		text  string // of the file; it is missing where this is empty
		other bool   // the second copy is of another directory
	}{
		"missing": {"", false}, "damaged": {"{", false}, "missing, another's copy": {"", true}, "damaged, another's copy": {"{", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, run := t.TempDir(), t.TempDir()
			path := filepath.Join(dir, "installation.json")
			first, _, err := Load(dir, run)
			if err != nil {
				t.Fatal(err)
			}
			of := first
			if tc.other {
				of.Inode++
			}
			if err := of.save(run); err != nil {
				t.Fatal(err)
			}
			if tc.text != "" {
				if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			id, minted, err := Load(dir, run)
			switch {
			case tc.other && tc.text != "":
				if err == nil {
					t.Error("the copy of another directory is taken for this one's")
				}
				return
			case tc.other:
				if err != nil || !minted || id.ID == first.ID {
					t.Errorf("got %+v, minted %t, %v; want another than %+v", id, minted, err, first)
				}
				return
			case err != nil || minted || id != first:
				t.Fatalf("got %+v, minted %t, %v; want %+v", id, minted, err, first)
			}
			if err := id.Keep(dir, run); err != nil {
				t.Fatal(err)
			}
			if again, _, err := Load(dir, t.TempDir()); err != nil || again != first {
				t.Errorf("it was not put back: %+v, %v", again, err)
			}
			if aside, err := filepath.Glob(path + ".lost-*"); err != nil || len(aside) != len(tc.text) {
				t.Errorf("set aside: %q, %v", aside, err)
			}
		})
	}
}
