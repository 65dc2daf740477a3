package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/coder/websocket"

	"banger/api"
	"banger/internal/guest/wire"
	"banger/internal/linux"
)

const (
	maxBody      = 64 << 10
	writeTimeout = 30 * time.Second
)

// Handler serves the agent's routes. poweroff is called once a request to power
// off has been answered, with the time that the host will wait for it.
func Handler(poweroff func(patience time.Duration)) http.Handler {
	img := &image{}
	ss := &sessions{image: img, byID: make(map[string]*session)}
	sshd := newSSHServer(img)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /alive", alive)
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, r *http.Request) { configure(w, r, sshd, img) })
	mux.HandleFunc("POST /poweroff", func(w http.ResponseWriter, r *http.Request) {
		var p wire.PowerOff
		_ = json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&p) // without a body: without patience
		w.WriteHeader(http.StatusNoContent)
		until, begun := mainDeadline(p.Patience), time.Now()
		time.AfterFunc(50*time.Millisecond, func() { // the answer gets out first
			ss.stopMain(until)
			if p.Patience > 0 {
				p.Patience -= time.Since(begun)
			}
			poweroff(p.Patience)
		})
	})
	mux.HandleFunc("GET /exec", ss.serve)
	mux.HandleFunc("GET /ssh", sshd.serve)
	mux.HandleFunc("GET /wants", sshd.lenders.serveWants)
	mux.HandleFunc("PUT /lent", sshd.lenders.serveLent)
	mux.HandleFunc("GET /tcp", tcp)
	fileRoutes(mux)
	mux.HandleFunc("GET /stats", stats)
	mux.HandleFunc("GET /ports", ports)
	mux.HandleFunc("GET /image-health", img.imageHealth)
	return mux
}

// alive answers for as long as this process lives: the end of the answer is the news.
func alive(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).Flush() == nil {
		<-r.Context().Done()
	}
}

// started is when this process was, counted from the start of the kernel; it tells one
// start of a guest from another.
var started = linux.Uptime()

func configure(w http.ResponseWriter, r *http.Request, sshd *sshServer, img *image) {
	var c wire.Configure
	err := json.NewDecoder(io.LimitReader(r.Body, wire.MaxConfigure)).Decode(&c)
	if err == nil {
		err = apply(c)
		if c.SSH != nil {
			sshd.configure(*c.SSH)
		}
		if c.Image != nil {
			img.configure(*c.Image)
		}
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(wire.Error{Message: err.Error()})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(wire.Greeting{Protocol: wire.Protocol, Uptime: linux.Uptime().Seconds(), Started: started.Seconds()})
}

// apply does all that c asks for, whatever fails on the way.
func apply(c wire.Configure) error {
	var errs []error
	if c.Time != 0 {
		errs = append(errs, linux.SetClock(time.Unix(0, c.Time)))
	}
	if len(c.Entropy) > 0 {
		errs = append(errs, linux.AddEntropy(c.Entropy))
	}
	if c.Grow {
		errs = append(errs, awaitSizes("/sys/class/block", c.Grown), growDisks())
	}
	if c.Network != nil {
		errs = append(errs, applyNetwork(*c.Network))
	}
	if now, err := os.Hostname(); err != nil || now != c.Hostname { // else it is as the boot has made it
		errs = append(errs, identify("/", c.Hostname, c.MachineID))
	}
	return errors.Join(errs...)
}

// identify gives the system whose tree is at dir its name and its machine id (32
// hexadecimal digits), as hostname(5) and machine-id(5) have it; empty ones are left
// alone. The name comes last: a system that has it has all of it.
func identify(dir, hostname, machineID string) error {
	var errs []error
	if machineID != "" {
		if b, err := hex.DecodeString(machineID); err != nil || len(b) != 16 {
			errs = append(errs, errors.New("machine id: 32 hexadecimal digits are needed"))
		} else {
			errs = append(errs, writeUnder(dir, "etc/machine-id", machineID+"\n", 0o444))
		}
	}
	if hostname != "" {
		errs = append(errs, writeUnder(dir, "etc/hostname", hostname+"\n", 0o644), nameHost(dir, hostname))
		if err := errors.Join(errs...); err != nil {
			return err
		}
		return linux.SetHostname(hostname)
	}
	return errors.Join(errs...)
}

// writeUnder replaces a file in the tree at dir, whatever it is there, a link too.
func writeUnder(dir, name, content string, mode os.FileMode) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if old, err := root.ReadFile(name); err == nil && string(old) == content {
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp := name + ".banger"
	if err := root.WriteFile(tmp, []byte(content), mode); err != nil {
		return err
	}
	return root.Rename(tmp, name)
}

// serve is GET /exec: one connection of a session. See api/stream.go.
func (ss *sessions) serve(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = ws.CloseNow() }()
	ctx := r.Context()
	c := &execConn{ws: ws}
	if err := c.run(ctx, ss); err != nil {
		_ = c.write(ctx, api.JSONFrame(api.FrameError, 0, api.AsError(err)))
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
}

type execConn struct {
	ws     *websocket.Conn
	s      *session
	number int
}

func (c *execConn) write(ctx context.Context, f api.Frame) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return c.ws.Write(ctx, websocket.MessageBinary, f.Marshal())
}

func (c *execConn) read(ctx context.Context) (api.Frame, error) {
	_, b, err := c.ws.Read(ctx)
	if err != nil {
		return api.Frame{}, err
	}
	return api.ParseFrame(b)
}

func (c *execConn) run(ctx context.Context, ss *sessions) error {
	c.ws.SetReadLimit(api.MaxOpen)
	openCtx, cancel := context.WithTimeout(ctx, writeTimeout)
	f, err := c.read(openCtx)
	cancel()
	if err != nil {
		return nil // the client has gone
	}
	var o api.ExecOpen
	if f.Type != api.FrameOpen || json.Unmarshal(f.Data, &o) != nil || len(o.ID) != 32 {
		return api.Errorf(api.CodeInvalid, "exec: the first frame does not open a session")
	}
	c.ws.SetReadLimit(api.MaxFrame)
	s, err := ss.open(o)
	if err != nil {
		return err
	}
	number, accepted := s.attach()
	defer s.detach(number)
	c.s, c.number = s, number
	if err := c.write(ctx, api.Frame{Type: api.FrameHello, Seq: accepted}); err != nil {
		return nil // the client has gone
	}
	received := make(chan error, 1)
	sending, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		received <- c.receive(ctx)
		stop()
	}()
	c.send(sending, o.After)
	select {
	case err = <-received:
	default: // another connection took over, or writing failed
	}
	return err
}

// send writes output and acknowledgements until ctx ends, another connection
// takes over or the session is dropped.
func (c *execConn) send(ctx context.Context, after uint64) {
	var acked uint64
	for {
		var next api.Frame
		ok := c.s.await(ctx.Done(), func() bool {
			if c.s.attached != c.number {
				next.Type = 0
				return true
			}
			if c.s.inDone > acked {
				acked = c.s.inDone
				next = api.Frame{Type: api.FrameStdinAck, Seq: acked}
				return true
			}
			for _, f := range c.s.output {
				if f.Seq > after {
					next, after = f, f.Seq
					return true
				}
			}
			return false
		})
		if !ok || next.Type == 0 || c.write(ctx, next) != nil {
			return
		}
	}
}

// receive takes the client's frames until the connection ends.
func (c *execConn) receive(ctx context.Context) error {
	for {
		f, err := c.read(ctx)
		if err != nil {
			return nil // the connection's end is not the session's
		}
		switch f.Type {
		case api.FrameStdin, api.FrameStdinEOF:
			err = c.s.accept(f)
		case api.FrameAck:
			c.s.ack(f.Seq)
			select {
			case <-c.s.gone:
				return nil
			default:
			}
		case api.FrameSignal:
			if e := c.s.signal(string(f.Data)); e != nil {
				log.Printf("signal %q: %v", f.Data, e)
			}
		case api.FrameResize:
			var size api.WindowSize
			if err = json.Unmarshal(f.Data, &size); err == nil {
				_ = c.s.setSize(size)
			}
		default:
			err = api.Errorf(api.CodeInvalid, "exec: a frame of unknown type %d", f.Type)
		}
		if err != nil {
			return err
		}
	}
}
