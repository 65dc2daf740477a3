package sshconf

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/api"
)

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkpOsxdSj2MGWVZLNpNxpyoTbRHFTkd7QEjNpWjR8aK"

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestKeyIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir")
	keys := make([]string, 8)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			if d, err := Open(path); err != nil {
				t.Error(err)
			} else {
				keys[i] = d.PublicKey()
			}
		})
	}
	group.Wait()
	for _, key := range keys {
		if key != keys[0] || !strings.HasPrefix(key, "ssh-ed25519 ") {
			t.Errorf("keys %q", keys)
		}
	}
	info, err := os.Stat(filepath.Join(path, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v (%v)", info.Mode(), err)
	}
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) != 2 {
		t.Errorf("left in the directory: %v (%v)", entries, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, keyFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]api.Code{
		damaged: api.CodeInvalid, file: api.CodeUnavailable, "relative": api.CodeUnsupported,
		"/tmp/a\nb": api.CodeUnsupported, "/tmp/${HOME}": api.CodeUnsupported,
	} {
		if _, err := Open(path); api.CodeOf(err) != code || api.AsError(err).Hint == "" && code != api.CodeUnavailable {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestTrust(t *testing.T) {
	d := open(t, t.TempDir())
	for i, want := range []bool{true, false} {
		if news, err := d.Trust("abc123", hostKey); err != nil || news != want {
			t.Errorf("time %d: %v (%v)", i, news, err)
		}
	}
	if text, err := os.ReadFile(d.hosts("abc123")); err != nil || string(text) != "abc123 "+hostKey+"\n" {
		t.Errorf("known hosts %q (%v)", text, err)
	}
	for _, bad := range [][2]string{{"../x", hostKey}, {"", hostKey}, {"*", hostKey}, {"abc", "no key"}, {"abc", hostKey + "\n" + hostKey}} {
		if _, err := d.Trust(bad[0], bad[1]); err == nil {
			t.Errorf("%q: trusted", bad)
		}
	}
}

func TestForget(t *testing.T) {
	d := open(t, t.TempDir())
	for _, id := range []string{"kept", "gone", "new"} {
		if _, err := d.Trust(id, hostKey); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * pruneAge)
	for _, id := range []string{"kept", "gone"} {
		if err := os.Chtimes(d.hosts(id), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Forget([]string{"kept"}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"kept": true, "gone": false, "new": true} {
		if _, err := os.Stat(d.hosts(id)); (err == nil) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// What is written is read by ssh as it was meant, whatever the paths contain.
func TestOptionsAsSSHReadsThem(t *testing.T) {
	program, err := exec.LookPath("ssh")
	if err != nil {
		t.Skipf("%v: run make test, which installs it", err)
	}
	for _, name := range []string{"plain", "with space", `quo"te`, "apo'strophe", "per%cent %h %d", "#hash", "dollar$x", "äöü", "a=b", `back\slash`, "~tilde"} {
		d := open(t, filepath.Join(t.TempDir(), name))
		odd := "/opt/" + name + "/banger"
		target := Target{ID: "abc123", Name: "api", User: "root", Proxy: []string{odd, "vm", "proxy"}, Env: []string{"BANGER_STATE_DIR=/x " + name}}
		stanza, err := d.Stanza(target)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(file, []byte(stanza), 0o600); err != nil {
			t.Fatal(err)
		}
		args, err := d.Args(target)
		if err != nil {
			t.Fatal(err)
		}
		for way, args := range map[string][]string{
			"stanza": {"-G", "-F", file, "--", target.Host()}, "arguments": append(append([]string{"-G", "-F", "none"}, args...), "--", target.Host()),
		} {
			out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s, %s: %v\n%s", name, way, err, out)
			}
			got := map[string]string{}
			for line := range strings.Lines(string(out)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				got[key] = value
			}
			// ssh expands percent signs later, and -G shows them as they were written.
			for key, want := range map[string]string{
				"hostname": "abc123", "user": "root", "hostkeyalias": "abc123", "stricthostkeychecking": "true", "identitiesonly": "yes",
				"identityfile":       filepath.Join(d.path, keyFile),
				"userknownhostsfile": d.hosts("abc123"),
			} {
				if value := strings.ReplaceAll(got[key], "%%", "%"); value != want {
					t.Errorf("%s, %s: %s is %q, want %q", name, way, key, value, want)
				}
			}
			// The shell reads the command as it was meant.
			proxy := strings.NewReplacer("%%", "%", "%h", "abc123").Replace(got["proxycommand"])
			words, err := exec.CommandContext(t.Context(), "sh", "-c", "printf '%s\\n' "+proxy).Output()
			if want := "env\nBANGER_STATE_DIR=/x " + name + "\n" + odd + "\nvm\nproxy\nabc123\n"; err != nil || string(words) != want {
				t.Errorf("%s, %s: the proxy's words are %q, want %q (%v)", name, way, words, want, err)
			}
		}
	}
}

func TestOptionsRefuse(t *testing.T) {
	d := open(t, t.TempDir())
	for name, target := range map[string]Target{
		"user":       {ID: "a", Name: "a", User: "-oProxyCommand=x"},
		"no user":    {ID: "a", Name: "a"},
		"user line":  {ID: "a", Name: "a", User: "a\nb"},
		"user token": {ID: "a", Name: "a", User: "%h"},
		"name":       {ID: "a", Name: "a b", User: "root"},
		"id":         {ID: "-a", Name: "a", User: "root"},
		"proxy":      {ID: "a", Name: "a", User: "root", Proxy: []string{"a\nb"}},
	} {
		if _, err := d.Args(target); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := d.Stanza(target); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
