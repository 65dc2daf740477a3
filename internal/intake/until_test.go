package intake

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
)

func TestUntilDone(t *testing.T) {
	want := bytes.Repeat([]byte("x"), 3*bufferSize)
	r := UntilDone(t.Context(), bytes.NewReader(want))
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	broken := errors.New("the line is dead")
	if _, err := io.ReadAll(UntilDone(t.Context(), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestUntilDoneEndsWithItsContext has a source that never says anything.
func TestUntilDoneEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent, end := io.Pipe()
		defer end.Close()
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		r := UntilDone(ctx, silent)
		defer r.Close()
		got := make(chan error)
		go func() {
			_, err := io.ReadAll(r)
			got <- err
		}()
		synctest.Wait() // both block
		cancel(enough)
		if err := <-got; !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		}
	})
}
