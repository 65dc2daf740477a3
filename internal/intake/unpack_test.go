package intake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"banger/api"
)

// pack runs a compressor of the system on data.
func pack(t testing.TB, data []byte, command ...string) []byte {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v", command, err)
	}
	return out
}

func unpack(data []byte) ([]byte, Format, error) {
	r, format, err := Open(bytes.NewReader(data))
	if err != nil {
		return nil, format, err
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, 64<<20))
	return out, format, err
}

func TestFormats(t *testing.T) {
	want := bytes.Repeat([]byte("some text that repeats "), 50_000)
	for _, c := range []struct {
		format  Format
		command []string
	}{
		{Gzip, []string{"gzip", "-9"}},
		{Zstd, []string{"zstd", "-q"}},
		{Zstd, []string{"zstd", "-q", "--long=24"}},
		{XZ, []string{"xz", "-7"}},
		{XZ, []string{"xz", "--check=crc32", "--x86", "--lzma2=dict=1MiB"}}, // as the kernel's build does
		{XZ, []string{"xz", "--check=sha256", "--block-size=100000"}},
	} {
		packed := pack(t, want, c.command...)
		got, format, err := unpack(packed)
		if err != nil || format != c.format || !bytes.Equal(got, want) {
			t.Errorf("%q: %d bytes of %d, %s, %v", c.command, len(got), len(want), format, err)
		}
		if got, _, err := unpack(append(packed, packed...)); err != nil || len(got) != 2*len(want) {
			t.Errorf("%q, twice: %d bytes, %v", c.command, len(got), err)
		}
		for _, n := range []int{7, len(packed) / 2, len(packed) - 3} {
			if _, _, err := unpack(packed[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%q, %d bytes of %d: got %v", c.command, n, len(packed), err)
			}
		}
		broken := bytes.Clone(packed)
		broken[len(broken)/2] ^= 0x55
		if got, _, err := unpack(broken); err == nil && bytes.Equal(got, want) {
			t.Errorf("%q: did not see the damage", c.command)
		}
	}
	if got, format, err := unpack([]byte("text")); err != nil || format != Plain || string(got) != "text" {
		t.Errorf("plain: %q, %s, %v", got, format, err)
	}
	if got, _, err := unpack(nil); err != nil || len(got) != 0 {
		t.Errorf("nothing: %q, %v", got, err)
	}
}

func TestOpenWithin(t *testing.T) {
	want := bytes.Repeat([]byte("some text that repeats "), 50_000)
	packed := pack(t, want, "xz", "-9") // a dictionary of 64 MiB
	r, format, err := OpenWithin(bytes.NewReader(packed), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || format != XZ || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %s, %v", len(got), len(want), format, err)
	}
	if _, _, err := unpack(packed); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("with less memory: %v", err)
	}
}

// xzDeclaring is the head of an .xz file whose block declares an LZMA2 dictionary of
// the given code: (2 | code&1) << (code/2 + 11) bytes, 40 being 4 GiB - 1.
func xzDeclaring(code byte) []byte {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	flags := sum([]byte{0, 1}) // the check is a CRC32
	head := append([]byte("\xfd7zXZ\x00"), 0, 1)
	head = append(head, flags[2:]...)
	block := sum([]byte{2, 0, 0x21, 1, code, 0, 0, 0}) // 12 bytes, one filter, LZMA2
	return append(append(head, block...), make([]byte, 64)...)
}

func TestMemoryIsBounded(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, data := range map[string][]byte{
		"xz, 4 GiB":    xzDeclaring(40),
		"xz, 192 MiB":  xzDeclaring(31),
		"zstd, 2 GiB":  []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"),
		"zstd, 3.8 TB": []byte("\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00"),
	} {
		if _, _, err := unpack(data); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "16 MiB") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > maxMemory {
		t.Errorf("%d bytes were allocated", taken)
	}
	// A second block that asks for more than the first one.
	first := pack(t, []byte("small"), "xz", "--lzma2=dict=4096")
	if _, _, err := unpack(append(first, xzDeclaring(40)...)); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("the second stream: got %v", err)
	}
}

func TestErrorsOfTheSourceArePassedOn(t *testing.T) {
	broken := errors.New("the line is dead")
	for _, head := range []string{"", "\x1f\x8b\x08\x00", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		r, _, err := Open(io.MultiReader(strings.NewReader(head), failing{broken}))
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if !errors.Is(err, broken) {
			t.Errorf("%q: got %v", head, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzOpen(f *testing.F) {
	for _, command := range [][]string{{"gzip"}, {"zstd", "-q"}, {"xz"}, {"xz", "--x86", "--lzma2"}} {
		f.Add(pack(f, []byte(strings.Repeat("fuzz ", 100)), command...))
	}
	f.Add(xzDeclaring(30))
	f.Add([]byte("\x02\x21\x4c\x18\x08\x00\x00\x00\x50fuzz!"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, _ = unpack(data)
		runtime.ReadMemStats(&after)
		if taken := after.TotalAlloc - before.TotalAlloc; taken > 4*maxMemory {
			t.Errorf("%d bytes were allocated", taken)
		}
	})
}
