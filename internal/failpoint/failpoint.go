// Package failpoint names the places where a test may end the process or have
// something fail: the steps of the ledger, the calls of the kernel that a kind of
// resource consists of, the statements of the database. It is a leaf. Disarmed, as it
// always is but in tests, a point costs the load of one pointer.
//
// Two variables of the environment arm a process that asks for it (FromEnv):
//
//	BANGER_FAILPOINT=tap.acquire.acted:2   it is killed at the second passage there
//	BANGER_FAILPOINT=link.created=EBUSY    the first passage there returns that error
//	BANGER_FAILPOINT=*:7                   it is killed at the 7th passage anywhere
//	BANGER_FAILPOINT_TRACE=FILE            the name of each point is appended to FILE as it is passed
//
// So a test finds out what an operation passes by doing it once, and then has it die
// at each of these: no list is kept by hand.
package failpoint

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// hook is called at each passage; nil while nothing is armed.
var hook atomic.Pointer[func(point string) error]

// Pass passes the point subject.step, after what it is called for has been done. The
// caller takes the error for one of what comes next.
func Pass(subject, step string) error {
	h := hook.Load()
	if h == nil {
		return nil
	}
	return (*h)(subject + "." + step)
}

// Reach is Pass where nothing comes next that could fail.
func Reach(subject, step string) { _ = Pass(subject, step) }

// Arm has fn called at each passage, by whatever goroutine; nil disarms.
func Arm(fn func(point string) error) {
	if fn == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&fn)
}

// The names of the variables.
const (
	Env      = "BANGER_FAILPOINT"
	EnvTrace = "BANGER_FAILPOINT_TRACE"
)

// errnos are the errors that may be asked for.
var errnos = map[string]syscall.Errno{
	"EBUSY": syscall.EBUSY, "EIO": syscall.EIO, "ENOMEM": syscall.ENOMEM, "ENOSPC": syscall.ENOSPC,
}

// FromEnv arms the process as its environment says, which mostly is not at all.
func FromEnv() error {
	armed, trace := os.Getenv(Env), os.Getenv(EnvTrace)
	if armed == "" && trace == "" {
		return nil
	}
	strike := func(string) error { return nil }
	if armed != "" {
		var err error
		if strike, err = parse(armed); err != nil {
			return fmt.Errorf("%s=%s: %w", Env, armed, err)
		}
	}
	if trace == "" {
		Arm(strike)
		return nil
	}
	file, err := os.OpenFile(trace, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", EnvTrace, err)
	}
	Arm(func(point string) error {
		_, err := file.WriteString(point + "\n") // in one call: points are passed by many at once
		return errors.Join(err, strike(point))
	})
	return nil
}

// parse reads POINT[:N][=ERRNO].
func parse(text string) (func(point string) error, error) {
	rest, name, fails := strings.Cut(text, "=")
	errno, known := errnos[name]
	if fails && !known {
		return nil, fmt.Errorf("no error %q can be had", name)
	}
	point, number, counted := strings.Cut(rest, ":")
	nth := int64(1)
	if counted {
		var err error
		if nth, err = strconv.ParseInt(number, 10, 64); err != nil || nth < 1 {
			return nil, fmt.Errorf("%q is not the number of a passage", number)
		}
	}
	var passages atomic.Int64
	return func(at string) error {
		if point != "*" && point != at || passages.Add(1) != nth {
			return nil
		}
		if fails {
			return errno
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal has arrived
	}, nil
}
