package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestCodes holds the codes of the schema and of the table together.
func TestCodes(t *testing.T) {
	field, _ := reflect.TypeFor[Error]().FieldByName("Code")
	all := strings.Split(field.Tag.Get("enum"), ",")
	if len(all) != len(codes) {
		t.Errorf("the schema has %d codes, the table %d", len(all), len(codes))
	}
	var exits []int
	for _, name := range all {
		c := Code(name)
		if _, known := codes[c]; !known {
			t.Errorf("%s is not in the table", c)
		}
		if s := c.HTTPStatus(); s < 400 || http.StatusText(s) == "" {
			t.Errorf("%s has the HTTP status %d", c, s)
		}
		exit := c.ExitStatus()
		// Beyond 128+64 nothing dies of a signal; 255 is what ssh ends with.
		if exit <= 192 || exit >= 255 || slices.Contains(exits, exit) {
			t.Errorf("%s has the exit status %d, which means something else too", c, exit)
		}
		exits = append(exits, exit)
	}
	unknown := Code("of a newer daemon")
	if unknown.HTTPStatus() != 500 || unknown.ExitStatus() != CodeInternal.ExitStatus() {
		t.Error("an unknown code is not taken for internal")
	}
}

func TestAsError(t *testing.T) {
	plain := errors.New("plain")
	coded := Errorf(CodeNoSpace, "write x: %w", fs.ErrClosed).WithHint("free %s", "some")
	for name, tc := range map[string]struct {
		err  error
		want Error
	}{
		"plain":   {plain, Error{Code: CodeInternal, Message: "plain"}},
		"coded":   {coded, Error{Code: CodeNoSpace, Message: "write x: file already closed", Hint: "free some"}},
		"wrapped": {fmt.Errorf("import y: %w", coded), Error{Code: CodeNoSpace, Message: "import y: write x: file already closed", Hint: "free some"}},
		"joined":  {errors.Join(coded, nil), Error{Code: CodeNoSpace, Message: "write x: file already closed", Hint: "free some"}},
		"coded again": {Errorf(CodeGuest, "boot: %w", coded),
			Error{Code: CodeGuest, Message: "boot: write x: file already closed"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := AsError(tc.err)
			if got.Code != tc.want.Code || got.Message != tc.want.Message || got.Hint != tc.want.Hint || CodeOf(tc.err) != tc.want.Code {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if name != "plain" && !errors.Is(got, fs.ErrClosed) {
				t.Error("the cause is lost")
			}
		})
	}
	if AsError(nil) != nil || CodeOf(nil) != "" {
		t.Error("no error became one")
	}
}

func TestErrorf(t *testing.T) {
	e := Errorf(CodeInvalid, "%d%%", 5)
	if e.Error() != "5%" || e.Unwrap() != nil {
		t.Errorf("got %q, %v", e, e.Unwrap())
	}
	hinted := e.WithHint("100%% of %s", "it")
	if e.Hint != "" || hinted.Hint != "100% of it" || hinted.Message != e.Message || hinted.Code != e.Code {
		t.Errorf("got %+v from %+v", hinted, e)
	}
	b, err := json.Marshal(hinted)
	var back Error
	if err == nil {
		err = json.Unmarshal(b, &back)
	}
	if err != nil || back.Code != hinted.Code || back.Message != hinted.Message || back.Hint != hinted.Hint {
		t.Errorf("over the wire: %+v, %v", back, err)
	}
	two := Errorf(CodeInvalid, "%w and %w", fs.ErrExist, fs.ErrClosed)
	if !errors.Is(two, fs.ErrExist) || !errors.Is(two, fs.ErrClosed) {
		t.Error("one of two causes is lost")
	}
}
