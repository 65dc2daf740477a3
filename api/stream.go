package api

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// An exec session is a WebSocket of binary messages, one frame each. The client
// begins with FrameOpen. Chunks of output, and at the end FrameExit, are numbered
// from 1 in one row; the agent keeps them until the client acknowledges them, so
// a client whose connection broke attaches again and goes on after the last one
// that it wrote out. The client's input is numbered and kept in the same manner.

// FrameType says what a frame is.
type FrameType byte

// The frames that the client sends.
const (
	FrameOpen     FrameType = 1 // JSON ExecOpen; always the first
	FrameStdin    FrameType = 2 // numbered: bytes
	FrameStdinEOF FrameType = 3 // numbered: the end of the input
	FrameResize   FrameType = 4 // JSON WindowSize
	FrameSignal   FrameType = 5 // name of a signal without SIG, e.g. INT
	FrameAck      FrameType = 6 // Seq: all output up to here has been written out
)

// The frames that the agent sends.
const (
	FrameHello    FrameType = 17 // Seq: the last number of the input that has arrived
	FrameStdout   FrameType = 18 // numbered: bytes
	FrameStderr   FrameType = 19 // numbered: bytes
	FrameStdinAck FrameType = 20 // Seq: all input up to here has been passed on
	FrameExit     FrameType = 21 // numbered: JSON ExecStatus; always the last
	FrameError    FrameType = 22 // JSON Error; the agent closes after it
)

const (
	frameHeader = 9
	// MaxChunk is the most bytes that a frame of input or output carries.
	MaxChunk = 64 << 10
	// MaxOpen is the most bytes that the payload of FrameOpen has.
	MaxOpen = 2 << 20
	// MaxFrame bounds every other message, its header included.
	MaxFrame = frameHeader + MaxChunk
	// ExecWindow is the most bytes of unacknowledged input or output that either
	// end keeps; the source is made to wait then.
	ExecWindow = 512 << 10
)

// Frame is one message of an exec session.
type Frame struct {
	Type FrameType
	Seq  uint64 // for numbered frames and acknowledgements, else 0
	Data []byte
}

// Marshal renders f: the type, Seq in 8 bytes big endian, the data.
func (f Frame) Marshal() []byte {
	b := make([]byte, frameHeader, frameHeader+len(f.Data))
	b[0] = byte(f.Type)
	binary.BigEndian.PutUint64(b[1:], f.Seq)
	return append(b, f.Data...)
}

// ParseFrame reads a message. The frame's data shares b's memory.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) < frameHeader {
		return Frame{}, fmt.Errorf("exec frame of %d bytes: shorter than its header", len(b))
	}
	f := Frame{Type: FrameType(b[0]), Seq: binary.BigEndian.Uint64(b[1:]), Data: b[frameHeader:]}
	if f.Type != FrameOpen && len(f.Data) > MaxChunk {
		return Frame{}, fmt.Errorf("exec frame of type %d: %d bytes are more than %d", f.Type, len(f.Data), MaxChunk)
	}
	return f, nil
}

// JSONFrame makes a frame whose data is v as JSON; v must be one of this package's types.
func JSONFrame(t FrameType, seq uint64, v any) Frame {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // none of the types can give this
	}
	return Frame{Type: t, Seq: seq, Data: b}
}

// ExecOpen begins a session or attaches to one. An ID that the agent knows is
// attached to, so a client that does not know whether its first attempt arrived
// may repeat it.
type ExecOpen struct {
	ID     string   `json:"id"`     // 32 hexadecimal digits, random, made by the client
	Resume bool     `json:"resume"` // attach only: not_found where the agent does not know ID
	After  uint64   `json:"after"`  // the last output that the client has written out
	Spec   ExecSpec `json:"spec"`
}

// ExecSpec is the command of an exec session. What it leaves open is as the VM's image
// says, and then as follows.
type ExecSpec struct {
	Command []string   `json:"command,omitempty"` // empty: the user's shell
	Image   bool       `json:"image,omitempty"`   // the image's own command; Command is empty
	Detach  bool       `json:"detach,omitempty"`  // it runs on by itself, without input; its output goes to the console
	Env     []string   `json:"env,omitempty"`     // NAME=value, beyond PATH, HOME, USER, TERM and those of the image
	Dir     string     `json:"dir,omitempty"`     // empty: the user's home
	User    string     `json:"user,omitempty"`    // name or uid, with :group or :gid; empty: root
	TTY     bool       `json:"tty,omitempty"`
	Size    WindowSize `json:"size,omitzero"`
	Stdin   bool       `json:"stdin,omitempty"` // false: the input is empty
}

// WindowSize is the size of a terminal, in characters.
type WindowSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ExecStatus says how a command ended.
type ExecStatus struct {
	Code   int    `json:"code"`             // exit status, if it exited
	Signal string `json:"signal,omitempty"` // name of the signal that killed it, without SIG, else empty
}
