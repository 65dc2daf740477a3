package kernel

import (
	"bytes"
	"encoding/binary"
	"io"

	"banger/api"
	"banger/internal/intake"
)

// maxVmlinux bounds an unpacked kernel, in bytes.
const maxVmlinux = 256 << 20

// maxWindow is the memory, in bytes, that a compressed stream of a package or a kernel may
// need: kernels have dictionaries of 32 MiB and more, packages those of xz -9, 64 MiB.
const maxWindow = 128 << 20

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
	unpacked, format, err := intake.OpenWithin(bytes.NewReader(payload), maxWindow)
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
		return nil, bad("its payload, %s, is not an ELF file (%v)", format, err)
	}
	if want := int(binary.LittleEndian.Uint32(payload[len(payload)-4:])); len(vmlinux) < want {
		return nil, bad("its payload ends after %d of %d bytes: %v", len(vmlinux), want, err)
	}
	return vmlinux, nil
}
