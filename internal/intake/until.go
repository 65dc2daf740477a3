package intake

import (
	"context"
	"io"
)

// UntilDone returns a reader of r whose reads end, with the cause of it, when ctx
// does, also where r blocks. It is to be closed. A read of r that is under way then
// goes on, and what it brings is lost.
func UntilDone(ctx context.Context, r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, struct{ io.Reader }{r}, make([]byte, bufferSize))
		pw.CloseWithError(err)
	}()
	return pr
}

// Known returns how many bytes r will give where it says so, as bytes.Reader does by
// its method Len, else 0.
func Known(r io.Reader) int64 {
	if l, ok := r.(interface{ Len() int }); ok {
		return int64(l.Len())
	}
	return 0
}
