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
	i, minted, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !wellFormed(i.ID) {
		t.Errorf("id %q", i.ID)
	}
	if !minted {
		return i.ID, false
	}
	if again, minted, err := Load(dir); err != nil || !minted || again.ID == i.ID {
		t.Errorf("before it is saved: %+v, minted %v, %v; want another one", again, minted, err)
	}
	if err := i.Save(dir); err != nil {
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
			_, _, err := Load(dir)
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
	if _, _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
}
