package api

import (
	"bytes"
	"testing"
)

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("12345678"))
	f.Add(Frame{Type: FrameStdinEOF, Seq: 1<<64 - 1}.Marshal())
	f.Add(Frame{Type: FrameStdout, Seq: 7, Data: []byte("data")}.Marshal())
	f.Add(JSONFrame(FrameExit, 9, ExecStatus{Code: 3}).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := ParseFrame(b)
		if err != nil {
			return
		}
		if !bytes.Equal(frame.Marshal(), b) {
			t.Errorf("%q became %q", b, frame.Marshal())
		}
	})
}

func TestFrameSizes(t *testing.T) {
	for _, tc := range []struct {
		frame Frame
		ok    bool
	}{
		{Frame{Type: FrameStdout, Data: make([]byte, MaxChunk)}, true},
		{Frame{Type: FrameStdout, Data: make([]byte, MaxChunk+1)}, false},
		{Frame{Type: FrameOpen, Data: make([]byte, MaxChunk+1)}, true},
	} {
		b := tc.frame.Marshal()
		if _, err := ParseFrame(b); (err == nil) != tc.ok {
			t.Errorf("type %d with %d bytes: %v", tc.frame.Type, len(tc.frame.Data), err)
		}
		if tc.ok && tc.frame.Type != FrameOpen && len(b) > MaxFrame {
			t.Errorf("%d bytes, which are more than MaxFrame", len(b))
		}
	}
	if _, err := ParseFrame(make([]byte, frameHeader-1)); err == nil {
		t.Error("a cut-off header was taken")
	}
}
