package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Code says what kind of error occurred. The set is closed: the same codes are
// used by the daemon, on the wire, by the client and for the exit status.
type Code string

// The codes.
const (
	CodeNotFound         Code = "not_found"         // no such object, or none that the caller may see
	CodeAlreadyExists    Code = "already_exists"    // the name is taken
	CodeInvalid          Code = "invalid"           // the request, or a file that came with it, is wrong
	CodeConflict         Code = "conflict"          // the object's state forbids it now
	CodeUnavailable      Code = "unavailable"       // something that is needed is missing or does not answer
	CodeNoSpace          Code = "no_space"          // a disk or a quota is full
	CodePermissionDenied Code = "permission_denied" // the caller may not do that
	CodeUnsupported      Code = "unsupported"       // this host, kernel or engine cannot do that
	CodeGuest            Code = "guest"             // the guest or its agent misbehaved
	CodeInternal         Code = "internal"          // a defect of banger's own
)

// codes is the one table that maps a code to its HTTP status and to the exit
// status of the CLI. Exit statuses start at 240, clear of what commands and
// shells use (0-127, and 128+n for death by signal n).
var codes = map[Code]struct{ http, exit int }{
	CodeInternal:         {http.StatusInternalServerError, 240},
	CodeInvalid:          {http.StatusBadRequest, 241},
	CodeNotFound:         {http.StatusNotFound, 242},
	CodeAlreadyExists:    {http.StatusConflict, 243},
	CodeConflict:         {http.StatusConflict, 244},
	CodeUnavailable:      {http.StatusServiceUnavailable, 245},
	CodeNoSpace:          {http.StatusInsufficientStorage, 246},
	CodePermissionDenied: {http.StatusForbidden, 247},
	CodeUnsupported:      {http.StatusNotImplemented, 248},
	CodeGuest:            {http.StatusBadGateway, 249},
}

// HTTPStatus is the status that an answer with this code carries.
func (c Code) HTTPStatus() int { return codes[c.orInternal()].http }

// ExitStatus is the status with which the CLI ends on an error with this code.
func (c Code) ExitStatus() int { return codes[c.orInternal()].exit }

func (c Code) orInternal() Code {
	if _, known := codes[c]; known {
		return c
	}
	return CodeInternal
}

// Error is an error as users and programs see it. Message names the operation
// and the object; Hint, if any, says what to do next.
type Error struct {
	Code    Code   `json:"code" enum:"not_found,already_exists,invalid,conflict,unavailable,no_space,permission_denied,unsupported,guest,internal" doc:"What kind of error this is."`
	Message string `json:"message" doc:"The operation, the object and the reason, on one line."`
	Hint    string `json:"hint,omitempty" doc:"What to do next, where it is known."`
	Object  string `json:"object,omitempty" doc:"With not_found, what is missing where the request did not have it as its subject: image/NAME, kernel/NAME, or kernel/ where there is none at all."`

	cause error
}

// Errorf makes an Error with a code; the format is that of fmt.Errorf, and errors
// given to %w can be found again with errors.Is and errors.As.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{Code: code, Message: oneLine(err), cause: errors.Unwrap(err)}
	if _, several := err.(interface{ Unwrap() []error }); several {
		e.cause = err
	}
	return e
}

// WithHint returns a copy of e that says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Missing returns a copy of e that says which object is missing: its kind, image or
// kernel, and its name.
func (e *Error) Missing(kind, name string) *Error {
	c := *e
	c.Object = kind + "/" + name
	return &c
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the error that the message was made from, if any.
func (e *Error) Unwrap() error { return e.cause }

// AsError finds the Error in err's chain. What carries none becomes an Error
// with CodeInternal; where outer layers added words to the message of an Error,
// the words are kept and code, hint and object are taken from the inner one.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	inner, ok := errors.AsType[*Error](err)
	if !ok {
		return &Error{Code: CodeInternal, Message: oneLine(err), cause: err}
	}
	if inner.Message == err.Error() {
		return inner
	}
	return &Error{Code: inner.Code, Message: oneLine(err), Hint: inner.Hint, Object: inner.Object, cause: err}
}

// oneLine is what several errors that were joined say.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// About says what err is about, such as `start VM "api"`, unless it says so itself.
// Nil stays nil.
func About(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if err == nil || strings.HasPrefix(err.Error(), what) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// CodeOf returns the code of err, CodeInternal where it has none.
// A nil error has none.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}
