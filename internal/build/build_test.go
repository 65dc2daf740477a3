package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

func TestImages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, file, target string
		args               map[string]string
		want               []string
		err                string
	}{
		{name: "one", file: "FROM debian:12\nRUN true", want: []string{"debian:12"}},
		{name: "stages are no images", file: "FROM golang AS Build\nFROM build AS b2\nFROM scratch\nCOPY --from=Build /x /x\nCOPY --from=0 /y /y\nCOPY --from=b2 /z /z", want: []string{"golang"}},
		{name: "files out of images", file: "FROM debian\nCOPY --from=busybox:1 /bin/sh /sh\nRUN --mount=type=bind,from=tools,target=/t true", want: []string{"debian", "busybox:1", "tools"}},
		{name: "arguments", file: "ARG V=12\nARG R=docker.io/library\nFROM $R/debian:${V}", args: map[string]string{"V": "13"}, want: []string{"docker.io/library/debian:13"}},
		{name: "a default", file: "FROM debian:${V:-11}", want: []string{"debian:11"}},
		{name: "each once", file: "FROM a\nFROM a\nFROM b", want: []string{"a", "b"}},
		{name: "a target", file: "FROM a AS one\nFROM b AS two\nFROM c", target: "TWO", want: []string{"a", "b"}},
		{name: "a target's number", file: "FROM a\nFROM b", target: "0", want: []string{"a"}},
		{name: "a later stage is an image", file: "FROM a\nCOPY --from=late /x /x\nFROM b AS late", target: "0", want: []string{"a", "late"}},
		{name: "no target of that name", file: "FROM a AS one\nFROM b AS two", target: "three", err: `build: Dockerfile has no stage "three"`},
		{name: "nothing", file: "", err: "build: Dockerfile: file with no instructions"},
		{name: "no FROM", file: "RUN true", err: "build: Dockerfile:1: no build stage in current context"},
		{name: "a word that is none", file: "FROM a\nRUM true", err: "build: Dockerfile:2: unknown instruction: RUM"},
		{name: "an argument without value", file: "ARG B\nFROM $B", err: "build: Dockerfile:2: FROM $B: no image"},
		{name: "an unknown flag", file: "FROM a\nCOPY --fro=x a b", err: "build: Dockerfile:2: unknown flag: --fro"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := Images("Dockerfile", []byte(c.file), c.args, c.target)
			if c.err != "" {
				if err == nil || api.CodeOf(err) != api.CodeInvalid || !strings.HasPrefix(err.Error(), c.err) {
					t.Errorf("error %v, want invalid, %s", err, c.err)
				}
				return
			}
			var refs []string
			for _, image := range got {
				refs = append(refs, image.Ref)
			}
			if err != nil || !slices.Equal(refs, c.want) {
				t.Errorf("%v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestImagesAreAlsoGivenAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	got, err := Images("Dockerfile", []byte("ARG V=12\nFROM debian:$V AS a\nFROM debian:12\nFROM debian:$V"), nil, "")
	want := []Image{{"debian:$V", "debian:12"}, {"debian:12", "debian:12"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestIgnored(t *testing.T) {
	t.Parallel()
	type path struct {
		name string
		dir  bool
	}
	for _, c := range []struct {
		name, file string
		out, in    []path
	}{
		{"nothing", "", nil, []path{{"a", false}, {".git", true}}},
		{"a directory", ".git\nnode_modules/\n# b\n", []path{{".git", true}, {".git/config", false}, {"node_modules", true}}, []path{{"b", false}, {"x/.git", true}}},
		{"anywhere", "**/*.o", []path{{"a.o", false}, {"x/y/b.o", false}}, []path{{"x", true}, {"a.c", false}}},
		{"taken back", "*\n!src\n", []path{{"a", false}}, []path{{"src", true}, {"src/x", false}, {"other", true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			ignored, err := Ignored(dir, filepath.Join(dir, "Dockerfile"))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range c.out {
				if out, err := ignored(p.name, p.dir); err != nil || !out {
					t.Errorf("%s is sent, %v", p.name, err)
				}
			}
			for _, p := range c.in {
				if out, err := ignored(p.name, p.dir); err != nil || out {
					t.Errorf("%s is not sent, %v", p.name, err)
				}
			}
		})
	}
}

func TestIgnoreFileOfADockerfile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{".dockerignore": "a", "Special.dockerignore": "b", "Broken.dockerignore": "[z-a"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ignored, err := Ignored(dir, filepath.Join(dir, "Special"))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := ignored("a", false)
	b, _ := ignored("b", false)
	if a || !b {
		t.Errorf("a is left out: %v, b: %v", a, b)
	}
	if _, err := Ignored(dir, filepath.Join(dir, "Broken")); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a pattern that is none: %v", err)
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	here := func(name string) (string, bool) { return "of here", name == "HERE" }
	got, err := Arguments([]string{"A=1", "B=x=y", "C=", "HERE", "GONE", "A=2"}, here)
	want := map[string]string{"A": "2", "B": "x=y", "C": "", "HERE": "of here"}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for k, v := range want {
		if value, ok := got[k]; !ok || value != v {
			t.Errorf("%s is %q, %v", k, value, ok)
		}
	}
	if _, err := Arguments([]string{"=x"}, here); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("no name: %v", err)
	}
}
