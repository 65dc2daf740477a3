package agent

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// indexDir writes the files of an index and opens their directory.
func indexDir(t testing.TB, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func indexOf(t testing.TB, files map[string]string) *moduleIndex {
	t.Helper()
	x, err := readModuleIndex(indexDir(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

var index = map[string]string{
	"modules.dep": `kernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko kernel/net/802/stp.ko kernel/net/llc/llc.ko
kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko
kernel/net/802/stp.ko: kernel/net/llc/llc.ko
kernel/net/llc/llc.ko:
kernel/net/netfilter/nfnetlink.ko.xz:
kernel/fs/nfsd/nfsd.ko: kernel/fs/gone.ko
kernel/crypto/md5-generic.ko:
kernel/drivers/a.ko: kernel/drivers/b.ko
kernel/drivers/b.ko: kernel/drivers/a.ko
`,
	"modules.alias": `# Aliases extracted from modules themselves.
alias net-pf-16-proto-12 nfnetlink
alias rtnl-link-bridge bridge
alias crypto-md5 md5_generic
alias char-major-10-[0-9]* b
alias same-* a
alias same-* b
alias lost-* not-there
alias broken[ a
`,
	"modules.softdep": "softdep nfsd pre: md5-generic none post: llc\nsoftdep stp gcm\nsoftdep\n",
	"modules.builtin": "kernel/fs/ext4/ext4.ko\n",
}

func TestModuleIndexResolve(t *testing.T) {
	x := indexOf(t, index)
	for name, want := range map[string]string{
		"bridge": "bridge", "br-netfilter": "br_netfilter", "br_netfilter": "br_netfilter", "nfnetlink": "nfnetlink",
		"net-pf-16-proto-12": "nfnetlink", "rtnl-link-bridge": "bridge", "crypto-md5": "md5_generic", "crypto_md5": "md5_generic",
		"char-major-10-232": "b", "same-thing": "a b", "broken[": "a",
		"net-pf-16-proto-1": "", "lost-x": "", "nope": "", "": "", "*": "", "../bridge": "",
	} {
		got, known := x.resolve(name)
		if strings.Join(got, " ") != want || known != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", name, got, known, want)
		}
	}
	if got, known := x.resolve("ext4"); len(got) > 0 || !known {
		t.Errorf("built in: got %q, %v", got, known)
	}
}

func TestModuleIndexPlan(t *testing.T) {
	x := indexOf(t, index)
	for module, want := range map[string]string{
		"br_netfilter": "llc stp bridge br_netfilter",
		"llc":          "llc",
		"nfsd":         "md5_generic? nfsd llc?",
		"a":            "b a", // a circle
		"nope":         "",
	} {
		var got []string
		for s := range x.plan(module) {
			if s.wanted {
				s.name += "?"
			}
			got = append(got, s.name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q", module, got, want)
		}
	}
}

func TestModuleIndexAbsent(t *testing.T) {
	x := indexOf(t, nil)
	if got, known := x.resolve("bridge"); len(got) > 0 || known {
		t.Errorf("got %q, %v", got, known)
	}
	dir := indexDir(t, nil)
	if err := loadNamed(dir, x, "bridge"); err == nil || !strings.Contains(err.Error(), "bridge") {
		t.Errorf("got %v", err)
	}
}

// An index that is anything but one does no harm: whatever it says, a plan ends, each
// module comes once, and no file outside of the directory is opened.
func TestModuleIndexHostile(t *testing.T) {
	words := rapid.SampledFrom([]string{
		"a.ko:", "b.ko:", "a.ko", "b.ko", "../../etc/passwd:", "/etc/passwd", ":", "alias", "softdep", "pre:", "post:", "*", "[", "-", "a", "b", "#",
	})
	rapid.Check(t, func(t *rapid.T) {
		files := map[string]string{}
		for name := range index {
			lines := rapid.SliceOfN(rapid.SliceOfN(words, 0, 6), 0, 6).Draw(t, name)
			for _, line := range lines {
				files[name] += strings.Join(line, " ") + "\n"
			}
		}
		x := newModuleIndex()
		for name, text := range files {
			x.parse(name, text)
		}
		for _, name := range []string{"a", "b", "passwd", "*", "["} {
			modules, _ := x.resolve(name)
			for _, module := range modules {
				var seen []string
				for s := range x.plan(module) {
					if slices.Contains(seen, s.name) {
						t.Fatalf("%s comes twice", s.name)
					}
					seen = append(seen, s.name)
				}
				if !slices.Contains(seen, module) {
					t.Fatalf("%s is not in its own plan %q", module, seen)
				}
			}
		}
	})
}

func TestLoadStaysInItsDirectory(t *testing.T) {
	dir := indexDir(t, map[string]string{"modules.dep": "../../../../../../../etc/passwd.ko:\n/etc/group.ko:\n"})
	x, err := readModuleIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group"} {
		if err := loadNamed(dir, x, name); err == nil || !strings.Contains(err.Error(), "escapes") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestIndexTooLong(t *testing.T) {
	dir := indexDir(t, nil)
	f, err := dir.Create("modules.dep")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(maxIndex+1), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := readModuleIndex(dir); err == nil || !strings.Contains(err.Error(), "modules.dep") {
		t.Errorf("got %v", err)
	}
}

func TestModprobeArgs(t *testing.T) {
	for args, want := range map[string]string{
		"-q -- nf_tables": "quiet nf_tables", "-q -- -x": "quiet -x", "ip_tables -q": "quiet ip_tables", "-va bridge br_netfilter": "bridge br_netfilter", "": "",
	} {
		names, quiet, err := modprobeArgs(strings.Fields(args))
		if quiet {
			names = append([]string{"quiet"}, names...)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", args, got, err, want)
		}
	}
	for _, args := range []string{"-r bridge", "--remove bridge", "-qn bridge"} {
		if names, _, err := modprobeArgs(strings.Fields(args)); err == nil {
			t.Errorf("%q: got %q", args, names)
		}
	}
}

func TestUnpackModule(t *testing.T) {
	want := bytes.Repeat([]byte("module "), 100_000)
	compressors := map[string]func(io.Writer) (io.WriteCloser, error){
		".gz":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		".zst": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	}
	files := map[string][]byte{".ko": want}
	for ext, compressor := range compressors {
		var b bytes.Buffer
		w, err := compressor(&b)
		if err == nil {
			_, err = w.Write(want)
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		files[ext] = b.Bytes()
	}
	packed := exec.Command("xz", "--check=crc32", "--stdout")
	packed.Stdin = bytes.NewReader(want)
	out, err := packed.Output()
	if err != nil {
		t.Fatal(err)
	}
	files[".xz"] = out
	for ext, data := range files {
		got, err := unpacked(t, ext, data)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v", ext, len(got), err)
		}
		if ext == ".ko" {
			continue
		}
		if _, err := unpacked(t, ext, data[:len(data)/2]); err == nil {
			t.Errorf("%s, truncated: no error", ext)
		}
	}
	if _, err := unpacked(t, ".lzo", want); err == nil {
		t.Error("an unknown compression: no error")
	}
}

func unpacked(t *testing.T, ext string, data []byte) ([]byte, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.ko"+ext)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plain, err := unpackModule(f, ext)
	if err != nil {
		return nil, err
	}
	if plain != f {
		defer plain.Close()
	}
	return io.ReadAll(io.NewSectionReader(plain, 0, 1<<30))
}

func FuzzModuleIndex(f *testing.F) {
	for name, text := range index {
		f.Add(name, text, "bridge")
	}
	f.Fuzz(func(t *testing.T, file, text, name string) {
		x := newModuleIndex()
		x.parse(file, text)
		x.parse("modules.dep", index["modules.dep"])
		modules, _ := x.resolve(name)
		for _, module := range modules {
			for s := range x.plan(module) {
				if s.file == "" {
					t.Errorf("%q in the plan has no file", s.name)
				}
			}
		}
	})
}
