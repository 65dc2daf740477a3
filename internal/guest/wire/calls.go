package wire

import (
	"bytes"
	"io"
)

// calls reads a port and finds the host's calls in what it says: a magic, wherever it
// begins, and the nonce behind it.
type calls struct {
	port  io.Reader
	magic magic

	called bool   // the magic of a call has been read
	rest   []byte // what was read behind it
	tail   []byte // the last bytes before that, fewer than a magic has
}

// read reads what a session is to get. Called is true where the host calls instead:
// then the session is over, and next returns the nonce.
func (c *calls) read(b []byte) (n int, called bool, err error) {
	if len(c.rest) > 0 {
		n = copy(b, c.rest)
		c.rest = c.rest[n:]
	} else if n, err = c.port.Read(b); err != nil {
		return 0, false, err
	}
	end := c.find(b[:n])
	if end < 0 {
		return n, false, nil
	}
	c.called = true
	c.rest = append(bytes.Clone(b[end:n]), c.rest...)
	return 0, true, nil
}

// next waits for a call and returns its nonce. Each time that something else comes
// first, it calls other.
func (c *calls) next(other func()) (nonce []byte, err error) {
	chunk := make([]byte, 4<<10)
	for !c.called {
		n, called, err := c.read(chunk)
		if err != nil {
			return nil, err
		}
		if n > 0 && !called {
			other()
		}
	}
	for len(c.rest) < nonceSize {
		n, err := c.port.Read(chunk)
		if err != nil {
			return nil, err
		}
		c.rest = append(c.rest, chunk[:n]...)
	}
	nonce, c.rest = c.rest[:nonceSize:nonceSize], c.rest[nonceSize:]
	c.called = false
	return nonce, nil
}

// find returns where in b, which follows on the bytes that it was given before, the
// first magic ends, or -1.
func (c *calls) find(b []byte) int {
	most := len(c.magic.text) - 1
	if len(c.tail) > 0 {
		across := append(c.tail, b[:min(most, len(b))]...)
		if at := c.magic.index(across); at >= 0 {
			end := at + len(c.magic.text) - len(c.tail)
			c.tail = c.tail[:0]
			return end
		}
	}
	if at := c.magic.index(b); at >= 0 {
		c.tail = c.tail[:0]
		return at + len(c.magic.text)
	}
	if len(b) > most {
		b, c.tail = b[len(b)-most:], c.tail[:0]
	}
	c.tail = keepTail(append(c.tail, b...), most)
	return -1
}

// magic finds a text by Horspool's algorithm, which looks at one byte of 32 and not at
// each, as bytes.Index does: every byte of a channel goes through it, in machines that
// are emulated too.
type magic struct {
	text []byte
	skip [256]uint8 // how far a byte that is below the end of text moves it on
}

func newMagic(text []byte) magic {
	m := magic{text: text}
	for i := range m.skip {
		m.skip[i] = uint8(len(text))
	}
	for i, c := range text[:len(text)-1] {
		m.skip[c] = uint8(len(text) - 1 - i)
	}
	return m
}

// index returns where in b the text begins first, or -1.
func (m *magic) index(b []byte) int {
	last := len(m.text) - 1
	for at := last; at < len(b); at += int(m.skip[b[at]]) {
		if b[at] == m.text[last] && bytes.Equal(b[at-last:at+1], m.text) {
			return at - last
		}
	}
	return -1
}
