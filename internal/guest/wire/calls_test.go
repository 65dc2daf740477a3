package wire

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestMagicIsFound compares the search with bytes.Index, over few different bytes so
// that much of the text comes up without all of it.
func TestMagicIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		few := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 255}), 1, 4)
		text := few.Draw(t, "text")
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 255}), 0, 40).Draw(t, "b")
		m := newMagic(text)
		if got, want := m.index(b), bytes.Index(b, text); got != want {
			t.Errorf("%v in %v: at %d, not %d", text, b, got, want)
		}
	})
	m := newMagic(hostMagic("s"))
	b := append(bytes.Repeat([]byte{7}, 1000), hostMagic("s")...)
	if at := m.index(b); at != 1000 {
		t.Errorf("the magic is found at %d", at)
	}
}
