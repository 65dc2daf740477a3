package vm_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"banger/api"
	"banger/internal/failpoint"
)

// TestFaultsEverywhere has the host refuse something at each point that an action
// passes. The action succeeds all the same, or ends with one clear error and has left
// nothing; the daemon goes on, tells the truth, and can do the action then.
func TestFaultsEverywhere(t *testing.T) {
	c := newCrashes(t)
	var cases []func()
	for name := range actions {
		for i, point := range c.trace(name) {
			errno := []string{"EBUSY", "ENOMEM"}[i%2]
			cases = append(cases, func() {
				if t.Failed() {
					return
				}
				w := c.world()
				status, said := w.spawn(name, true, failpoint.Env+"="+point+"="+errno)
				if status != exitDone && status != exitRefused {
					t.Errorf("%s: %s at %s: status %d: %s", name, errno, point, status, said)
				}
			})
		}
	}
	together(cases)
}

// aboutSomething is how an error begins that says what could not be done with what.
var aboutSomething = regexp.MustCompile(`^[a-z]+ (VM|image|kernel) "[a-z0-9.:/-]+": `)

// refused checks the error of an action that the host has kept from succeeding, and
// what is not there after it.
func (w *world) refused(a action, err error) {
	if err == nil {
		return
	}
	text := err.Error()
	cause := 0
	for _, errno := range []syscall.Errno{syscall.EBUSY, syscall.ENOMEM, syscall.ENOSPC} {
		cause += strings.Count(text, errno.Error())
	}
	if cause != 1 || strings.Contains(text, "\n") || !aboutSomething.MatchString(text) {
		w.t.Errorf("not one clear error: %q", text)
	}
	if a.undone != nil {
		if err := a.undone(w); err != nil {
			w.t.Errorf("after the error: %v", err)
		}
	}
}

// absent is an error where something is there.
func absent(what string, err error) error {
	if api.CodeOf(err) != api.CodeNotFound {
		return errors.Join(fmt.Errorf("%s is there", what), err)
	}
	return nil
}
