package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

// apiError is api.Error with the method that huma takes the status from.
type apiError api.Error

func (e *apiError) Error() string  { return e.Message }
func (e *apiError) GetStatus() int { return e.Code.HTTPStatus() }

// adaptHuma sets what huma has once for the whole process: its own errors, those of
// decoding and checking, look like all others, and lists are never null.
var adaptHuma = sync.OnceFunc(func() {
	huma.NewError = newError
	huma.NewErrorWithContext = func(ctx huma.Context, status int, message string, details ...error) huma.StatusError {
		if message == "validation failed" && len(details) > 0 {
			message = ctx.Operation().OperationID // the details say what
		}
		return newError(status, message, details...)
	}
	huma.DefaultArrayNullable = false
})

// bodyUnreadable is what huma calls a defect, although the caller sent it.
const bodyUnreadable = "cannot read request body"

func newError(status int, message string, details ...error) huma.StatusError {
	code := api.CodeInvalid
	switch {
	case status == http.StatusNotFound:
		code = api.CodeNotFound
	case status >= 500 && message != bodyUnreadable:
		code = api.CodeInternal
	}
	parts := []string{message}
	for _, d := range details {
		var detail *huma.ErrorDetail
		switch {
		case d == nil:
		case errors.As(d, &detail) && detail.Location != "":
			parts = append(parts, detail.Location+": "+detail.Message)
		default:
			parts = append(parts, d.Error())
		}
	}
	return &apiError{Code: code, Message: oneLine(strings.Join(parts, ": "))}
}

// maxMessage bounds what an error repeats of a request, in bytes.
const maxMessage = 2 << 10

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + " ..."
	}
	return s
}

// coded is err as huma should get it from a handler, and logs defects.
func (s *server) coded(err error) *apiError {
	e := *api.AsError(err)
	if e.Code == api.CodeInternal {
		s.Log.Error("internal error", "err", err)
	}
	e.Message = oneLine(e.Message)
	return (*apiError)(&e)
}

// fail answers with err, on routes that are not huma's.
func (s *server) fail(w http.ResponseWriter, err error) {
	e := s.coded(err)
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // it holds nothing but strings
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b))) // the reader must not wait for drain
	w.WriteHeader(e.GetStatus())
	_, _ = w.Write(b) // the caller is gone
}
