package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"

	"banger/api"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// maxVmlinux bounds an unpacked kernel, in bytes.
const maxVmlinux = 256 << 20

// Offsets in the setup header of a bzImage; Documentation/arch/x86/boot.rst.
const (
	setupSects    = 0x1f1
	setupMagic    = 0x202
	payloadOffset = 0x248
	payloadLength = 0x24c
)

// extractVmlinux returns the ELF kernel within a bzImage, or image itself where it
// is one already.
func extractVmlinux(image []byte) ([]byte, error) {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.CodeInvalid, "read kernel image: "+format, args...)
	}
	if bytes.HasPrefix(image, []byte("\x7fELF")) {
		return image, nil
	}
	if len(image) < payloadLength+4 || string(image[setupMagic:setupMagic+4]) != "HdrS" {
		return nil, bad("neither an ELF file nor a bzImage")
	}
	sects := int64(image[setupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start >= end || end > int64(len(image)) {
		return nil, bad("its payload lies outside of the file")
	}
	// The last four bytes are the unpacked size, appended by the kernel's build.
	payload := image[start:end]
	unpacked, err := unpack(payload)
	if err != nil {
		return nil, bad("unpack its payload: %w", err)
	}
	defer unpacked.Close()
	vmlinux, err := io.ReadAll(io.LimitReader(unpacked, maxVmlinux+1))
	if len(vmlinux) > maxVmlinux {
		return nil, bad("its payload unpacks to more than %d bytes", maxVmlinux)
	}
	// What follows the compressed stream is not of it, and some readers object.
	if !bytes.HasPrefix(vmlinux, []byte("\x7fELF")) {
		return nil, bad("its payload is not an ELF file (%v)", err)
	}
	if want := int(binary.LittleEndian.Uint32(payload[len(payload)-4:])); len(vmlinux) < want {
		return nil, bad("its payload ends after %d of %d bytes: %v", len(vmlinux), want, err)
	}
	return vmlinux, nil
}

// unpack reads data in the compression that its first bytes tell: gzip, xz, zstd,
// or the legacy frames of lz4.
func unpack(data []byte) (io.ReadCloser, error) {
	r := bytes.NewReader(data)
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false)
		}
		return z, err
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		z, err := xz.ReaderConfig{SingleStream: true}.NewReader(r)
		return io.NopCloser(z), err
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(data, []byte("\x02\x21\x4c\x18")):
		return io.NopCloser(lz4.NewReader(r)), nil
	}
	return nil, fmt.Errorf("unknown compression % x", data[:min(6, len(data))])
}
