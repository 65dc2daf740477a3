package vm

import "banger/api"

// event is what can happen to a VM.
type event string

const (
	evStart    event = "start" // asked to start
	evStarted  event = "started"
	evStop     event = "stop"   // asked to stop
	evUnstop   event = "unstop" // a stop that was cancelled
	evKill     event = "kill"   // asked to end at once
	evEnded    event = "ended"  // stopped, or a start that came to nothing
	evDied     event = "died"   // the VMM ended by itself
	evDelete   event = "delete" // asked to go; only when stopped
	evDestroy  event = "delete --force"
	evUndelete event = "undelete" // a delete that came to nothing
	evChange   event = "change"   // asked to become something else; its state stays
)

// next is the whole policy of the lifecycle: the state into which an event takes a
// VM, or the reason why it does not. It is pure.
func next(s api.VMState, e event) (api.VMState, error) {
	refuse := func(hint string) (api.VMState, error) {
		return s, api.Errorf(api.CodeConflict, "%s: it is %s", e, s).WithHint("%s", hint)
	}
	switch e {
	case evStart:
		if s == api.VMStopped {
			return api.VMStarting, nil
		}
		return refuse("banger vm show says what it is doing")
	case evStarted:
		if s == api.VMStarting {
			return api.VMRunning, nil
		}
	case evStop:
		if s == api.VMRunning || s == api.VMStarting {
			return api.VMStopping, nil
		}
		return refuse("only a running VM can be stopped")
	case evUnstop:
		if s == api.VMStopping {
			return api.VMRunning, nil
		}
	case evKill:
		if s == api.VMRunning || s == api.VMStarting || s == api.VMStopping {
			return api.VMStopping, nil
		}
		return refuse("only a running VM can be killed")
	case evEnded:
		if s == api.VMStarting || s == api.VMStopping {
			return api.VMStopped, nil
		}
	case evDied:
		if s == api.VMRunning {
			return api.VMStopping, nil
		}
	case evDelete:
		if s == api.VMStopped {
			return api.VMDeleting, nil
		}
		return refuse("stop it first, or delete it with --force")
	case evDestroy:
		if s != api.VMDeleting {
			return api.VMDeleting, nil
		}
		return refuse("it will be gone soon")
	case evUndelete:
		if s == api.VMDeleting {
			return api.VMStopped, nil
		}
	case evChange:
		if s == api.VMStopped || s == api.VMRunning {
			return s, nil
		}
		return refuse("try again when it is stopped or running")
	}
	return s, api.Errorf(api.CodeInternal, "%s cannot happen to a VM that is %s", e, s)
}
