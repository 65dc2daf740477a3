package kernel

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"banger/api"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const (
	maxPackage = 2 << 30 // bytes of a package, and of what it unpacks to
	maxFiles   = 100_000
)

// unpackDeb writes the kernel image and the modules of a Debian package into root,
// as vmlinuz and lib/modules/...; deb(5), ar(5).
func unpackDeb(r io.Reader, root *os.Root) error {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.CodeInvalid, "read package: "+format, args...)
	}
	in := bufio.NewReaderSize(io.LimitReader(r, maxPackage), 1<<20)
	magic := make([]byte, 8)
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != "!<arch>\n" {
		return api.Errorf(api.CodeInvalid, "read package: it is not a Debian package").WithHint("give a linux-image .deb")
	}
	header := make([]byte, 60)
	for {
		if _, err := io.ReadFull(in, header); err != nil {
			return bad("no data.tar in it: %w", err)
		}
		name := strings.TrimRight(string(header[:16]), " /")
		size, err := strconv.ParseInt(strings.TrimSpace(string(header[48:58])), 10, 64)
		if err != nil || size < 0 {
			return bad("member %q has no size", name)
		}
		member := io.LimitReader(in, size)
		if strings.HasPrefix(name, "data.tar") {
			data, err := decompress(member, path.Ext(name))
			if err == nil {
				err = unpackTar(data, root)
				data.Close()
			}
			if err != nil {
				return bad("%s: %w", name, err)
			}
			return nil
		}
		if _, err := io.CopyN(io.Discard, in, size+size%2); err != nil {
			return bad("member %q: %w", name, err)
		}
	}
}

// decompress reads r as the extension of a file name says.
func decompress(r io.Reader, ext string) (io.ReadCloser, error) {
	switch ext {
	case ".tar", ".ko":
		return io.NopCloser(r), nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		z, err := xz.NewReader(r)
		return io.NopCloser(z), err
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("unknown compression %q", ext)
}

// unpackTar writes the regular files that a kernel consists of.
func unpackTar(r io.Reader, root *os.Root) error {
	files, total := 0, int64(0)
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		name = strings.TrimPrefix(name, "usr/")
		switch {
		case h.Typeflag != tar.TypeReg:
			continue
		case strings.HasPrefix(name, "boot/vmlinuz-"), strings.HasPrefix(name, "boot/vmlinux-"):
			name = "vmlinuz"
		case !strings.HasPrefix(name, "lib/modules/"):
			continue
		}
		files++
		if total += h.Size; files > maxFiles || total > maxPackage {
			return fmt.Errorf("%s: too many or too large files", h.Name)
		}
		if err := writeFile(root, name, archive); err != nil {
			return err
		}
	}
}

func writeFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
