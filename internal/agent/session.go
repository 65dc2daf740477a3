package agent

import (
	"os"
	"sync"
	"time"

	"banger/api"
	"banger/internal/linux"
)

const (
	maxSessions  = 256
	keepExited   = 10 * time.Minute
	keepDetached = 5 * time.Minute
	// maxInput bounds input that arrived and is not passed on yet. A client keeps
	// no more than api.ExecWindow of it unacknowledged.
	maxInput = api.ExecWindow + api.MaxChunk
)

// sessions are the exec sessions by id.
type sessions struct {
	image *image
	mu    sync.Mutex
	byID  map[string]*session
}

// open finds the session of o or begins it.
func (ss *sessions) open(o api.ExecOpen) (*session, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s, ok := ss.byID[o.ID]; ok {
		return s, nil
	}
	if o.Resume {
		return nil, api.Errorf(api.CodeNotFound, "attach to exec session: the guest has none of this id").
			WithHint("the VM was restarted, or the client was away for too long")
	}
	if len(ss.byID) >= maxSessions {
		return nil, api.Errorf(api.CodeConflict, "exec: %d commands run in this VM, no more are allowed", maxSessions)
	}
	spec, err := complete(o.Spec, ss.image.now())
	if err != nil {
		return nil, err
	}
	s := &session{changed: make(chan struct{}), gone: make(chan struct{}), main: spec.Image || spec.Detach, alone: spec.Detach}
	s.drop = func() {
		ss.mu.Lock()
		delete(ss.byID, o.ID)
		ss.mu.Unlock()
		s.timer(0, nil)
		s.goneOnce.Do(func() { close(s.gone) })
	}
	if err := s.start(spec); err != nil {
		return nil, err
	}
	ss.byID[o.ID] = s
	s.expire(false)
	return s, nil
}

// session is a command that runs, or ran, and what its client has not had yet.
type session struct {
	drop     func()
	main     bool          // the VM is there for its command: it gets the image's stop signal
	alone    bool          // no client is needed for it to go on
	gone     chan struct{} // closed when the session is dropped
	goneOnce sync.Once

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever anything below changes

	output   []api.Frame // not acknowledged, in order
	size     int         // bytes in output
	lastSeq  uint64      // of the output
	exitSeq  uint64      // of the exit frame; 0 while the command runs
	input    []api.Frame // arrived and not passed on
	inSize   int
	inSeq    uint64 // last that arrived
	inDone   uint64 // last that was passed on
	inClosed bool   // the command takes no more
	attached int    // number of the connection that is attached; 0 for none
	attaches int
	console  *os.File
	pgid     int // 0 once the command has ended
	resize   func(api.WindowSize) error
	expiry   *time.Timer
}

// notify wakes all that wait for a change. The caller holds mu.
func (s *session) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await runs try under mu after every change until it returns true; false means
// that stop was closed first.
func (s *session) await(stop <-chan struct{}, try func() bool) bool {
	for {
		s.mu.Lock()
		if try() {
			s.mu.Unlock()
			return true
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-stop:
			return false
		}
	}
}

// put adds output; it waits while the client is too far behind.
func (s *session) put(f api.Frame) bool {
	return s.await(s.gone, func() bool {
		if s.size > 0 && s.size+len(f.Data) > api.ExecWindow {
			return false
		}
		s.lastSeq++
		f.Seq = s.lastSeq
		if f.Type == api.FrameExit {
			s.exitSeq = f.Seq
		}
		s.output = append(s.output, f)
		s.size += len(f.Data)
		s.notify()
		return true
	})
}

// ack forgets output that the client has written out.
func (s *session) ack(seq uint64) {
	s.mu.Lock()
	n := 0
	for n < len(s.output) && s.output[n].Seq <= seq {
		s.size -= len(s.output[n].Data)
		s.output[n].Data = nil
		n++
	}
	s.output = s.output[n:]
	done := s.exitSeq != 0 && seq >= s.exitSeq
	s.notify()
	s.mu.Unlock()
	if done {
		s.drop()
	}
}

// accept takes input; what arrived before is ignored.
func (s *session) accept(f api.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.Seq <= s.inSeq:
		return nil
	case f.Seq != s.inSeq+1:
		return api.Errorf(api.CodeInvalid, "exec: input %d came after %d", f.Seq, s.inSeq)
	case s.inSize+len(f.Data) > maxInput || len(s.input) > maxInput/64:
		return api.Errorf(api.CodeInvalid, "exec: more input than the window allows")
	}
	s.inSeq = f.Seq
	if s.inClosed {
		s.inDone = f.Seq
	} else {
		s.input = append(s.input, f)
		s.inSize += len(f.Data)
	}
	s.notify()
	return nil
}

// nextInput waits for the first input that was not passed on; false at the session's end.
func (s *session) nextInput() (f api.Frame, ok bool) {
	ok = s.await(s.gone, func() bool {
		if s.inClosed {
			return true
		}
		if len(s.input) == 0 {
			return false
		}
		f = s.input[0]
		return true
	})
	return f, ok && f.Type != 0
}

// passedOn forgets the first input.
func (s *session) passedOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.input) > 0 {
		s.inDone = s.input[0].Seq
		s.inSize -= len(s.input[0].Data)
		s.input = s.input[1:]
	}
	s.notify()
}

// closeInput discards all input from now on.
func (s *session) closeInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inClosed, s.input, s.inSize, s.inDone = true, nil, 0, s.inSeq
	s.notify()
}

// attach makes a connection the session's only one and returns its number.
func (s *session) attach() (number int, accepted uint64) {
	s.timer(0, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attaches++
	s.attached = s.attaches
	s.notify()
	return s.attached, s.inSeq
}

// detach says that a connection has ended.
func (s *session) detach(number int) {
	s.mu.Lock()
	mine := s.attached == number
	if mine {
		s.attached = 0
	}
	exited := s.pgid == 0
	s.mu.Unlock()
	if mine {
		s.expire(exited)
	}
}

// expire bounds how long a session without a client is kept.
func (s *session) expire(exited bool) {
	select {
	case <-s.gone:
	default:
		switch {
		case exited:
			s.timer(keepExited, s.drop)
		case s.alone:
		default:
			s.timer(keepDetached, s.hangUp)
		}
	}
}

func (s *session) timer(after time.Duration, do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	if do != nil {
		s.expiry = time.AfterFunc(after, do)
	}
}

func (s *session) hangUp() { _ = s.signal("HUP") }

// signal sends a signal to the command's process group, if it still runs.
func (s *session) signal(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pgid == 0 {
		return nil
	}
	return linux.Signal(s.pgid, name)
}

func (s *session) setSize(size api.WindowSize) error {
	s.mu.Lock()
	resize := s.resize
	s.mu.Unlock()
	if resize == nil {
		return nil
	}
	return resize(size)
}
