package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// qmpTimeout bounds one command, qmpLine one answer.
const (
	qmpTimeout = 5 * time.Second
	qmpLine    = 1 << 20
)

// command is one command of the monitor.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`

	file *os.File // which goes with the command (getfd)
}

// send writes a command.
func (c command) send(conn net.Conn) error {
	if c.file == nil {
		return json.NewEncoder(conn).Encode(c)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("an open file cannot be passed")
	}
	_, _, err = unix.WriteMsgUnix(append(text, '\n'), syscall.UnixRights(int(c.file.Fd())), nil)
	return err
}

// qmp runs commands on a fresh connection to QEMU's monitor, which takes one
// client at a time (QEMU Machine Protocol, docs/interop/qmp-spec).
func qmp(ctx context.Context, conn net.Conn, commands ...command) (last json.RawMessage, err error) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() && err != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(qmpTimeout)); err != nil {
		return nil, err
	}
	in := bufio.NewReader(io.LimitReader(conn, qmpLine))
	if _, err := in.ReadBytes('\n'); err != nil {
		return nil, fmt.Errorf("qmp greeting: %w", err)
	}
	for _, command := range append([]command{{Execute: "qmp_capabilities"}}, commands...) {
		if err := command.send(conn); err != nil {
			return nil, fmt.Errorf("qmp %s: %w", command.Execute, err)
		}
		if last, err = answer(in); err != nil {
			return nil, fmt.Errorf("qmp %s: %w", command.Execute, err)
		}
	}
	return last, nil
}

// answer reads the answer to a command, past the events before it.
func answer(in *bufio.Reader) (json.RawMessage, error) {
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		var msg struct {
			Event  string
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &msg); err != nil {
			return nil, err
		}
		switch {
		case msg.Error != nil:
			return nil, errors.New(msg.Error.Desc)
		case msg.Return != nil:
			return msg.Return, nil
		case msg.Event == "":
			return nil, errors.New("the monitor said what is neither answer nor event")
		}
	}
}
