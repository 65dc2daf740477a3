package archive

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"banger/api"
)

// Coded gives an error of this package, or of the file system, its code. Prefix
// says what was done.
func Coded(prefix string, err error) error {
	if err == nil {
		return nil
	}
	if coded, ok := errors.AsType[*api.Error](err); ok {
		return coded
	}
	unnumbered := ownWords(err)
	if p, ok := err.(*fs.PathError); ok && strings.HasSuffix(prefix, " "+p.Path) {
		err = p.Err
	}
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	code, hint := api.CodeInternal, ""
	switch {
	case is(ErrEntry):
		code = api.CodeInvalid
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		code, hint = api.CodeNoSpace, "free some space, or copy to elsewhere"
	case is(fs.ErrNotExist):
		code = api.CodeNotFound
	case is(fs.ErrPermission, syscall.EROFS):
		code = api.CodePermissionDenied
	case is(syscall.EISDIR, syscall.ENOTDIR, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ELOOP, syscall.EBUSY, syscall.ETXTBSY):
		code = api.CodeConflict
	case unnumbered:
		code = api.CodeConflict
	case is(errChanged):
		code, hint = api.CodeConflict, "copy again when nothing writes to it"
	case is(io.ErrUnexpectedEOF):
		code = api.CodeInvalid
	case is(syscall.ENAMETOOLONG, syscall.EINVAL, syscall.ENOTSUP):
		code = api.CodeUnsupported
	}
	e := api.Errorf(code, "%s: %w", prefix, err)
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}

// ownWords tells the errors for which os.Root has no number: a path leads out of the
// directory, or through what is none.
func ownWords(err error) bool {
	p, ok := errors.AsType[*fs.PathError](err)
	if !ok {
		return false
	}
	_, numbered := errors.AsType[syscall.Errno](p.Err)
	return !numbered
}
