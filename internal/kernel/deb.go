package kernel

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"banger/api"
	"banger/internal/intake"
)

const (
	maxPackage = 2 << 30 // bytes of a package, and of what it unpacks to
	maxFiles   = 100_000
)

// debMagic begins a Debian package.
const debMagic = "!<arch>\n"

// unpack writes what a kernel consists of into root: the image as vmlinuz, the modules
// as lib/modules/..., and its configuration. Custom says that it is no distribution's: an
// image alone, or the archive that the kernel's own build makes (make tar-pkg).
func unpack(r io.Reader, root *os.Root) (custom bool, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	head, err := in.Peek(setupMagic + 4)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, api.Errorf(api.CodeInvalid, "read kernel: %w", err)
	}
	image := len(head) == setupMagic+4 && string(head[setupMagic:]) == "HdrS"
	switch {
	case strings.HasPrefix(string(head), debMagic):
		return false, unpackDeb(in, root)
	case image || strings.HasPrefix(string(head), "\x7fELF"):
		limited := &io.LimitedReader{R: in, N: maxVmlinux + 1}
		err := writeFile(root, "vmlinuz", limited)
		if err == nil && limited.N == 0 {
			err = api.Errorf(api.CodeInvalid, "read kernel: it is larger than %d bytes", int64(maxVmlinux))
		}
		return true, err
	case intake.FormatOf(head) != intake.Plain || len(head) > 262 && string(head[257:262]) == "ustar": // POSIX pax, "magic"
		err := unpackData(&io.LimitedReader{R: in, N: maxPackage}, root, false)
		if coded := api.CodeOf(err); err != nil && coded == api.CodeInternal && !isNoSpace(err) {
			err = api.Errorf(api.CodeInvalid, "read archive: %w", err).WithHint("give what make tar-pkg makes, all of it")
		}
		return true, err
	}
	return false, api.Errorf(api.CodeInvalid, "read kernel: it is neither a Debian package, nor an archive, a vmlinux or a bzImage").
		WithHint("give a linux-image .deb, what make tar-pkg makes, or a kernel with --config")
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// unpackDeb unpacks a Debian package; deb(5), ar(5).
func unpackDeb(r io.Reader, root *os.Root) error {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.CodeInvalid, "read package: "+format, args...).WithHint("give a linux-image .deb, all of it")
	}
	in := bufio.NewReaderSize(io.LimitReader(r, maxPackage), 1<<20)
	if _, err := io.CopyN(io.Discard, in, int64(len(debMagic))); err != nil {
		return bad("%w", err)
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
		member := &io.LimitedReader{R: in, N: size}
		if strings.HasPrefix(name, "data.tar") {
			if err := unpackData(member, root, true); err != nil {
				return bad("%s: %w", name, err)
			}
			return nil
		}
		if _, err := io.CopyN(io.Discard, in, size+size%2); err != nil {
			return bad("member %q: %w", name, err)
		}
	}
}

// unpackData unpacks a data.tar, which is all of the member if exact, to its very end, so that a truncated one is found out
// and the checksums of its compression are verified.
func unpackData(member *io.LimitedReader, root *os.Root, exact bool) error {
	data, _, err := intake.OpenWithin(member, maxWindow)
	if err != nil {
		return err
	}
	defer data.Close()
	unpacked := &io.LimitedReader{R: data, N: maxPackage}
	err = unpackTar(unpacked, root)
	if err == nil {
		_, err = io.Copy(io.Discard, unpacked)
	}
	switch {
	case unpacked.N == 0:
		return fmt.Errorf("more than %d bytes", int64(maxPackage))
	case err != nil:
		return err
	case exact && member.N > 0:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// unpackTar writes the regular files that a kernel consists of.
func unpackTar(r io.Reader, root *os.Root) error {
	files := 0
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
		case isKernelImage(name):
			if name = "vmlinuz"; h.Size > maxVmlinux {
				return fmt.Errorf("%s: larger than %d bytes", h.Name, int64(maxVmlinux))
			}
		case isConfig(name):
			if name = configFile; h.Size > maxConfig {
				return fmt.Errorf("%s: larger than %d bytes", h.Name, maxConfig)
			}
		case !strings.HasPrefix(name, "lib/modules/"):
			continue
		}
		if files++; files > maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		if err := writeFile(root, name, archive); err != nil {
			return err
		}
	}
}

// isKernelImage tells where distributions put it: in /boot, or with the modules.
func isKernelImage(name string) bool {
	image, _ := path.Match("boot/vmlinu[xz]-*", name)
	beside, _ := path.Match("lib/modules/*/vmlinuz", name)
	return image || beside
}

func isConfig(name string) bool {
	config, _ := path.Match("boot/config-*", name)
	return config
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
