package image_test

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/api"
)

// mostMemory is what importing the worst archive may take, resident, in kB: of 100 MiB, as
// the daemon has more in it than a test.
const mostMemory = 92 << 10

// envWorst is the variable of the environment that has a process import an archive.
const envWorst = "BANGER_TEST_WORST"

// worst are archives without end, each of which takes a lot of memory for what it is.
var worst = map[string]func(i int) tar.Header{
	"files": func(i int) tar.Header { return tar.Header{Name: fmt.Sprintf("d%d/f%d", i/1000, i), Size: 1} },
	"directories": func(i int) tar.Header {
		return tar.Header{Name: fmt.Sprintf("d%d/%d/", i/1000, i), Typeflag: tar.TypeDir}
	},
	"long names": func(i int) tar.Header { return tar.Header{Name: fmt.Sprintf("%0255d", i)} },
	"long paths": func(i int) tar.Header {
		return tar.Header{Name: strings.Repeat(strings.Repeat("p", 250)+"/", 16) + fmt.Sprint(i)}
	},
	"long targets": func(i int) tar.Header {
		return tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeSymlink, Linkname: fmt.Sprintf("%04000d", i)}
	},
	"hard links": func(i int) tar.Header { return link(i, 60_000) },
	"large headers": func(i int) tar.Header {
		return attributed(strings.Repeat("n", 250)+fmt.Sprintf("/%0200d", i), "comment", 20_000)
	},
	"attributes of dirs": func(i int) tar.Header {
		h := attributed(fmt.Sprintf("%d/", i), "user.a", 3000)
		h.Typeflag = tar.TypeDir
		return h
	},
}

func link(i, most int) tar.Header {
	if i%most == 0 {
		return tar.Header{Name: fmt.Sprint("to", i)}
	}
	return tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeLink, Linkname: fmt.Sprint("to", i/most*most)}
}

func attributed(name, key string, size int) tar.Header {
	if key != "comment" {
		key = "SCHILY.xattr." + key
	}
	return tar.Header{Name: name, PAXRecords: map[string]string{key: strings.Repeat("v", size)}}
}

// TestMemoryIsBounded imports archives of ten million entries, each in a process of its
// own: they are refused before the process has taken much memory.
func TestMemoryIsBounded(t *testing.T) {
	if kind := os.Getenv(envWorst); kind != "" {
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(endless(pw, worst[kind])) }()
		importWorst(t, pr)
		return
	}
	for kind := range worst {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			checkPeak(t, "TestMemoryIsBounded", kind)
		})
	}
}

// TestMemoryOfDeepImage is the same with an image of many layers, each of which takes
// little: but what is above the first seven is one disk.
func TestMemoryOfDeepImage(t *testing.T) {
	if file := os.Getenv(envWorst); file != "" {
		f, err := os.Open(file)
		check(t, err)
		importWorst(t, f)
		return
	}
	var layers [][]byte
	for l := range 24 {
		var entries []tar.Header
		for i := range 9_000 {
			entries = append(entries, fileEntry(fmt.Sprintf("d%d/%d", l, i), 0))
		}
		layers = append(layers, archive(t, entries...))
	}
	file := filepath.Join(t.TempDir(), "deep.tar")
	check(t, os.WriteFile(file, saved(t, ociImage(t, layers...)), 0o600))
	checkPeak(t, "TestMemoryOfDeepImage", file)
}

// checkPeak runs a test in a process of its own, which imports and is refused, and finds
// that it took little memory.
func checkPeak(t *testing.T, name, kind string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+name+"$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), envWorst+"="+kind)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var peak int
	_, figures, _ := strings.Cut(string(out), "VmHWM:")
	if _, err := fmt.Sscan(figures, &peak); err != nil || peak > mostMemory {
		t.Errorf("%d kB of memory, more than %d: %v", peak, mostMemory, err)
	}
	_, entries, _ := strings.Cut(string(out), "refused: ")
	t.Logf("%d kB, %.200s", peak, entries)
}

func endless(w io.Writer, header func(i int) tar.Header) error {
	b := bufio.NewWriterSize(w, 1<<20)
	out := tar.NewWriter(b)
	for i := range 10_000_000 {
		h := header(i)
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		err := out.WriteHeader(&h)
		if err == nil && h.Size > 0 {
			_, err = out.Write(make([]byte, h.Size))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// importWorst is the child's part.
func importWorst(t *testing.T, r io.ReadCloser) {
	m, db, dir := newManager(t)
	m.MaxSize, m.MaxEntries = 20<<30, 2_000_000
	_, refusal := m.Import(t.Context(), 0, "worst", r, nil)
	r.Close()
	if err := refusal; api.CodeOf(err) != api.CodeInvalid || !strings.Contains(api.AsError(err).Hint, "image.max_memory") {
		t.Errorf("got %v", err)
	}
	if n := leftovers(t, db, dir); n != 0 {
		t.Errorf("%d rows and directories are left", n)
	}
	status, err := os.ReadFile("/proc/self/status")
	check(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") {
			t.Log(line)
		}
	}
	t.Logf("refused: %v", refusal)
}
