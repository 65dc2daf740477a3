package e2e

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
)

// busybox is the archive of a root file system that has a shell and little else.
func busybox(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("no static busybox, which make deps-test installs: %v", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	headers := []tar.Header{{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}, {Name: "tmp/", Mode: 0o777, Typeflag: tar.TypeDir}}
	for _, applet := range []string{"sh", "cat", "echo", "ls", "id", "mkdir"} {
		headers = append(headers, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
	}
	for _, h := range headers {
		err := w.WriteHeader(&h)
		if err == nil && h.Size > 0 {
			_, err = w.Write(program)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBuild makes images of Dockerfiles whose base is an image of banger's, and runs what
// came of it.
func TestBuild(t *testing.T) {
	h := hosttest.NewSystemd(t)
	h.Must(t, "image", "tag", "debian-systemd", "banger-builder")
	if got := h.Pipe(t, string(busybox(t)), "image", "import", "team/base:1", "-"); got.Exit != 0 {
		t.Fatalf("import the base: %+v", got)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"Dockerfile": `ARG V=0
FROM team/base:$V AS compile
ARG WORD
RUN echo $WORD >/word
COPY src /src
RUN cat /src/one /src/two >/both; ls /src >/list

FROM team/base:1
ENV GREETING=hi
WORKDIR /srv
COPY --from=compile /both /list /word ./
RUN id -u >uid && echo "built $GREETING"
HEALTHCHECK CMD ["/bin/cat", "/srv/both"]
CMD ["/bin/cat", "both", "list", "word", "uid"]
`,
		".dockerignore": "secret\nsrc/*.o\n", "secret": "s", "src/one": "one\n", "src/two": "two\n", "src/x.o": "object",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := func(args ...string) hosttest.Result {
		t.Helper()
		return h.Banger(t, append([]string{"image", "build", "--pull", "never", "--build-arg", "V=1", "--build-arg", "WORD=w w"}, args...)...)
	}
	first := build("-t", "app", dir)
	if first.Exit != 0 || !strings.Contains(first.Stderr, "built hi") || !strings.HasPrefix(first.Stdout, "app ") {
		t.Fatalf("build: %+v", first)
	}
	if got, want := h.Must(t, "vm", "run", "--rm", "--image", "app", "--net", "none"), "one\ntwo\none\ntwo\nw w\n0"; got != want {
		t.Errorf("what the image's command prints is %q, not %q", got, want)
	}
	if got := h.Must(t, "image", "show", "app"); !strings.Contains(got, "/srv") || !strings.Contains(got, "GREETING=hi") {
		t.Errorf("the image's config:\n%s", got)
	}
	before := h.Must(t, "image", "show", "--json", "app")

	t.Run("something else", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "src/two"), []byte("deux\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		got := build("-t", "app", dir)
		if got.Exit != 0 || !strings.Contains(got.Stderr, "Using cache") {
			t.Errorf("a build in which some steps are the same: %+v", got)
		}
		if after := h.Must(t, "image", "show", "--json", "app"); after == before {
			t.Errorf("the name still means the former image: %s", after)
		}
	})
	t.Run("a step that fails", func(t *testing.T) {
		text := "FROM team/base:1\nRUN echo this is why; exit 7\n"
		got := h.Pipe(t, text, "image", "build", "-t", "never", "-f", "-", dir)
		if got.Exit != api.CodeGuest.ExitStatus() || !strings.Contains(got.Stderr, "this is why") || !strings.Contains(got.Stderr, "banger: build never: ") {
			t.Errorf("a step that fails: %+v", got)
		}
		if got := h.Banger(t, "image", "show", "never"); got.Exit == 0 {
			t.Errorf("an image came of it: %s", got.Stdout)
		}
	})
	if got := h.Must(t, "vm", "list", "--json"); !strings.Contains(got, `"state": "stopped"`) {
		t.Errorf("the builder, with nothing to build: %s", got)
	}
}
