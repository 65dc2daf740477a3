package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

// userFiles puts files in the place of /etc/passwd and /etc/group.
func userFiles(t *testing.T, passwd, group string) {
	t.Helper()
	dir := t.TempDir()
	for path, text := range map[*string]string{&passwdFile: passwd, &groupFile: group} {
		old := *path
		*path = filepath.Join(dir, filepath.Base(old))
		t.Cleanup(func() { *path = old })
		if err := os.WriteFile(*path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFindUser(t *testing.T) {
	userFiles(t, strings.Join([]string{
		"# a comment", "", ":::::::::", "short:x:1:1", "nobody-at-all",
		"negative:x:-1:-1::/:/bin/sh", "huge:x:4294967296:0::/:/bin/sh", "letters:x:zero:0::/:/bin/sh",
		"long:x:1:1::/:/bin/sh:more",
		"root:x:0:0:root:/root:/bin/bash",
		"me:x:1000:1000:I, myself:/home/me:/bin/zsh",
		"me:x:0:0:an impostor:/root:/bin/sh",
		"1000:x:7:7::/seven:/bin/sh",
		"nohome:x:8:8:::",
		"\x00\xff:x:9:9::/\x1b:/bin/sh",
	}, "\n"), strings.Join([]string{
		"root:x:0:", "me:x:1000:", "wheel:x:10:root,me", "audio:x:11:me,", "menders:x:12:meme,m,e", "bad:x:many:me", "huge:x:4294967296:me",
		"too:x:13:me:more", "video:x:14:you,me,they",
	}, "\n"))
	for spec, want := range map[string]user{
		"":           {name: "root", home: "/root", shell: "/bin/bash", groups: []uint32{10}},
		"0":          {name: "root", home: "/root", shell: "/bin/bash", groups: []uint32{10}},
		"me":         {name: "me", home: "/home/me", shell: "/bin/zsh", uid: 1000, gid: 1000, groups: []uint32{10, 11, 14}},
		"1000":       {name: "me", home: "/home/me", shell: "/bin/zsh", uid: 1000, gid: 1000, groups: []uint32{10, 11, 14}},
		"me:wheel":   {name: "me", home: "/home/me", shell: "/bin/zsh", uid: 1000, gid: 10},
		"me:4711":    {name: "me", home: "/home/me", shell: "/bin/zsh", uid: 1000, gid: 4711},
		":wheel":     {name: "root", home: "/root", shell: "/bin/bash", gid: 10},
		"4711":       {name: "4711", home: "/", uid: 4711},
		"4711:4712":  {name: "4711", home: "/", uid: 4711, gid: 4712},
		"nohome":     {name: "nohome", home: "/", uid: 8, gid: 8},
		"4294967294": {name: "4294967294", home: "/", uid: 4294967294},
	} {
		got, err := findUser(spec)
		if err != nil || got.name != want.name || got.home != want.home || got.shell != want.shell || got.uid != want.uid ||
			got.gid != want.gid || !slices.Equal(got.groups, want.groups) {
			t.Errorf("%q: got %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{
		"you", "short", "negative", "huge", "letters", "long", "-1", "4294967296", "me:", "me:nogroup", "me:-1", "me:wheel:me", "# a comment", " me",
		// setresuid(2) takes this one for "leave it as it is"
		"4294967295", "me:4294967295",
	} {
		if u, err := findUser(spec); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: got %+v, %v; want an error with code invalid", spec, u, err)
		}
	}
}

func TestFindUserWithoutFiles(t *testing.T) {
	userFiles(t, "", "")
	for _, path := range []string{passwdFile, groupFile} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := findUser(""); err != nil || u.uid != 0 || u.home != "/root" {
		t.Errorf("root: %+v, %v", u, err)
	}
	if _, err := findUser("me"); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("me: %v", err)
	}
}

// A line that is too long hides what comes after it, but neither hangs nor lies.
func TestHugeUserFile(t *testing.T) {
	userFiles(t, "me:x:1000:1000::/:/bin/sh\n"+strings.Repeat("x", maxUserFile)+"\nlate:x:0:0::/:/bin/sh\n", "")
	if u, err := findUser("me"); err != nil || u.uid != 1000 {
		t.Errorf("me: %+v, %v", u, err)
	}
	if u, err := findUser("late"); err == nil {
		t.Errorf("late: %+v", u)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"bin/tool": 0o755, "bin/data": 0o644, "sbin/data": 0o755, "sbin/tool": 0o755, "bin/plain": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/nowhere", "PATH=bin:" + filepath.Join(dir, "sbin")} // the last one counts
	for name, want := range map[string]string{
		"tool": "bin/tool", "data": "sbin/data", "bin/tool": "bin/tool", "./bin/../sbin/tool": "sbin/tool",
		filepath.Join(dir, "bin/tool"): "bin/tool",
	} {
		if got, err := lookPath(name, dir, env); err != nil || got != filepath.Join(dir, want) {
			t.Errorf("%q: got %q, %v; want %s", name, got, err, want)
		}
	}
	for name, missing := range map[string]bool{"": true, "none": true, "./none": true, "bin/tool/x": true, "plain": false, "bin/plain": false, "./bin": false} {
		if got, err := lookPath(name, dir, env); err == nil || isMissing(err) != missing {
			t.Errorf("%q: got %q, %v; missing should be %v", name, got, err, missing)
		}
	}
}
