package vm

import (
	"slices"

	"banger/api"
)

// event is what can happen to a VM.
type event string

const (
	evStart     event = "start" // asked to start, or to wake
	evStarted   event = "started"
	evStop      event = "stop"    // asked to stop
	evUnstop    event = "unstop"  // a stop that was cancelled
	evKill      event = "kill"    // asked to end at once, or to forget what it was at
	evEnded     event = "ended"   // stopped, or a start that came to nothing
	evDied      event = "died"    // the VMM ended by itself
	evPause     event = "pause"   // asked to stand still
	evPaused    event = "paused"  // stands still, also after a suspend that came to nothing
	evResume    event = "resume"  // asked to go on
	evResumed   event = "resumed" // goes on, likewise
	evSuspend   event = "suspend" // asked to stand still on the disk
	evSuspended event = "suspended"
	evDelete    event = "delete" // asked to go; only when stopped
	evDestroy   event = "delete --force"
	evUndelete  event = "undelete" // a delete that came to nothing
	evChange    event = "change"   // asked to become something else; its state stays
)

// rule is where an event leads.
type rule struct {
	from []api.VMState
	to   api.VMState // empty: the state stays
	hint string      // for a user who asks in another state; empty for what is no request
}

// always are the states in which there is a VM, for the one request that all obey.
var always = []api.VMState{
	api.VMStopped, api.VMStarting, api.VMRunning, api.VMPaused, api.VMSuspending, api.VMSuspended, api.VMStopping,
}

// rules are the whole policy of the lifecycle. Pausing and resuming have no state of
// their own: they are quick, and until they are done the former one is the truth.
var rules = map[event]rule{
	evStart:     {[]api.VMState{api.VMStopped, api.VMSuspended}, api.VMStarting, "banger vm show says what it is doing"},
	evStarted:   {[]api.VMState{api.VMStarting}, api.VMRunning, ""},
	evStop:      {[]api.VMState{api.VMRunning, api.VMStarting, api.VMPaused, api.VMSuspending}, api.VMStopping, "only a running VM can be stopped"},
	evUnstop:    {[]api.VMState{api.VMStopping}, api.VMRunning, ""},
	evKill:      {always[1:], api.VMStopping, "only a running VM can be killed"},
	evEnded:     {[]api.VMState{api.VMStarting, api.VMStopping}, api.VMStopped, ""},
	evDied:      {[]api.VMState{api.VMRunning, api.VMPaused}, api.VMStopping, ""},
	evPause:     {[]api.VMState{api.VMRunning}, "", "only a running VM can be paused"},
	evPaused:    {[]api.VMState{api.VMRunning, api.VMSuspending}, api.VMPaused, ""},
	evResume:    {[]api.VMState{api.VMPaused}, "", "only a paused VM can be resumed"},
	evResumed:   {[]api.VMState{api.VMPaused, api.VMSuspending}, api.VMRunning, ""},
	evSuspend:   {[]api.VMState{api.VMRunning, api.VMPaused}, api.VMSuspending, "only a running or a paused VM can be suspended"},
	evSuspended: {[]api.VMState{api.VMSuspending, api.VMStarting}, api.VMSuspended, ""},
	evDelete:    {[]api.VMState{api.VMStopped}, api.VMDeleting, "stop it first, or delete it with --force"},
	evDestroy:   {always, api.VMDeleting, "it will be gone soon"},
	evUndelete:  {[]api.VMState{api.VMDeleting}, api.VMStopped, ""},
	evChange:    {[]api.VMState{api.VMStopped, api.VMRunning, api.VMPaused, api.VMSuspended}, "", "try again when it is stopped or running"},
}

// waysOut are what to do first about a VM that stands still, where a request does not
// suit that. They come before a rule's own hint.
var waysOut = map[api.VMState]map[event]string{
	api.VMPaused: {
		evStart: "banger vm resume has it go on", evDelete: "banger vm stop ends it; banger vm delete --force deletes it as it is",
	},
	api.VMSuspended: {
		evStop: "banger vm start wakes it; banger vm kill has it forget what it was at", evDelete: "banger vm kill has it forget what it was at, or delete it with --force",
		evPause: "banger vm start wakes it", evResume: "banger vm start wakes it",
	},
}

// next is the policy as a function: the state into which an event takes a VM, or the
// reason why it does not. It is pure.
func next(s api.VMState, e event) (api.VMState, error) {
	r := rules[e]
	switch {
	case !slices.Contains(r.from, s) && r.hint == "":
		return s, api.Errorf(api.CodeInternal, "%s cannot happen to a VM that is %s", e, s)
	case !slices.Contains(r.from, s):
		hint := r.hint
		if way := waysOut[s][e]; way != "" {
			hint = way
		}
		return s, api.Errorf(api.CodeConflict, "%s: it is %s", e, s).WithHint("%s", hint)
	case r.to == "":
		return s, nil
	}
	return r.to, nil
}
