package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

func TestStalledImport(t *testing.T) {
	m, db, dir := newManager(t)
	in, feed := io.Pipe()
	defer feed.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := m.Import(ctx, "k", in, noReport)
		ended <- err
	}()
	if _, err := io.WriteString(feed, "!<arch>\n"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || api.CodeOf(err) == api.CodeInvalid {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir + "/kernels"); len(left) > 0 || len(db.refs) > 0 {
		t.Errorf("%v and %v are left", left, db.refs)
	}
}

func TestImportOnFullDisk(t *testing.T) {
	m, db, dir := newManager(t)
	kernels := filepath.Join(dir, "kernels")
	if err := os.Mkdir(kernels, 0o711); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", kernels).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer func() {
		if err := exec.Command("umount", kernels).Run(); err != nil {
			t.Error("umount:", err)
		}
	}()
	files := kernelFiles()
	files["./boot/vmlinuz-"+release] += strings.Repeat("x", 1<<20)
	if _, err := m.Import(t.Context(), "k", bytes.NewReader(kernelDeb(t, files)), noReport); api.CodeOf(err) != api.CodeNoSpace {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(kernels); len(left) > 0 || len(db.refs) > 0 {
		t.Errorf("%v and %v are left", left, db.refs)
	}
}

// TestPackageOfHugeDictionary has a data.tar.xz that asks for 4 GiB of memory.
func TestPackageOfHugeDictionary(t *testing.T) {
	m, _, _ := newManager(t)
	data := compressed(t, ".xz", []byte("x"))
	block := data[12:24] // behind the stream's header: size, flags, LZMA2, 1 byte, the dictionary's code
	block[4] = 40
	binary.LittleEndian.PutUint32(block[8:], crc32.ChecksumIEEE(block[:8]))
	_, err := m.Import(t.Context(), "k", bytes.NewReader(deb("data.tar.xz", data, len(data))), noReport)
	if api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "memory") {
		t.Errorf("got %v", err)
	}
}

func FuzzUnpackDeb(f *testing.F) {
	plain := plainTar(f, kernelFiles())
	f.Add(deb("data.tar", plain, len(plain)))
	f.Add(deb("data.tar.gz", []byte("\x1f\x8b\x08"), 3))
	f.Add([]byte("!<arch>\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "in"), 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(filepath.Join(dir, "in"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = unpackDeb(io.LimitReader(bytes.NewReader(data), 1<<20), root)
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("it wrote outside of its directory: %v, %v", entries, err)
		}
		entries, err := os.ReadDir(filepath.Join(dir, "in"))
		for _, e := range entries {
			if e.Name() != "vmlinuz" && e.Name() != "lib" {
				t.Errorf("it wrote %s", e.Name())
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}
