// Package intake reads the streams of strangers: one that stalls ends with its
// context, a compressed one is unpacked in bounded memory. How long a stream may be is
// for the caller to bound.
package intake

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"

	"banger/api"
)

// maxMemory is what Open has, in bytes, for the window of zstd or the dictionary of xz;
// gzip and lz4 need less. It suffices for what `xz -7` (16 MiB) and `zstd -19` (8 MiB) make.
const maxMemory = 16 << 20

const bufferSize = 256 << 10

// Format is how a stream is compressed.
type Format string

// The formats that are known by their first bytes; everything else is plain.
const (
	Plain Format = "plain"
	Gzip  Format = "gzip" // RFC 1952
	Zstd  Format = "zstd" // RFC 8878
	XZ    Format = "xz"   // The .xz File Format 1.2.1
	LZ4   Format = "lz4"  // its legacy frame, as the kernel's build makes it
)

var magics = []struct {
	bytes  string
	format Format
}{
	{"\x1f\x8b", Gzip},
	{"\x28\xb5\x2f\xfd", Zstd},
	{"\xfd7zXZ\x00", XZ},
	{"\x02\x21\x4c\x18", LZ4},
}

// Open returns the content of r, which is to be closed, and how it was compressed. A
// stream that ends too early gives io.ErrUnexpectedEOF; one that needs too much memory
// an api.Error, invalid. An error of r is passed on.
func Open(r io.Reader) (io.ReadCloser, Format, error) { return OpenWithin(r, maxMemory) }

// OpenWithin is Open with memory bytes for the window or the dictionary.
func OpenWithin(r io.Reader, memory int) (io.ReadCloser, Format, error) {
	b := bufio.NewReaderSize(r, bufferSize)
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, Plain, err
	}
	format := FormatOf(magic)
	plain, err := open(b, format, memory)
	if err != nil {
		return nil, format, explain(format, memory, err)
	}
	return &reader{plain, format, memory}, format, nil
}

// FormatOf tells how a stream is compressed that begins with head, of which it wants
// six bytes or all that there are.
func FormatOf(head []byte) Format {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.bytes)) {
			return m.format
		}
	}
	return Plain
}

func open(r io.Reader, format Format, memory int) (io.ReadCloser, error) {
	switch format {
	case Gzip:
		return gzip.NewReader(r)
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(uint64(memory)), zstd.WithDecoderMaxWindow(uint64(memory)), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case XZ:
		z, err := xz.NewReader(r, uint32(memory))
		return io.NopCloser(z), err
	case LZ4:
		return io.NopCloser(lz4.NewReader(r)), nil
	}
	return io.NopCloser(r), nil
}

type reader struct {
	io.ReadCloser
	format Format
	memory int
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = explain(r.format, r.memory, err)
	}
	return n, err
}

// explain gives the libraries' errors a meaning that they share.
func explain(format Format, memory int, err error) error {
	switch {
	case errors.Is(err, xz.ErrMemlimit) || errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return api.Errorf(api.CodeInvalid, "its %s stream needs more than %d MiB of memory to unpack", format, memory>>20).
			WithHint("compress it with a smaller dictionary, as xz -7 and zstd -19 do")
	case errors.Is(err, xz.ErrBuf):
		return fmt.Errorf("%s: %w", format, io.ErrUnexpectedEOF)
	case err == io.EOF: // within a header
		return io.ErrUnexpectedEOF
	}
	return err
}
