// Package client is the Go client of bangerd, and the SDK for programs that run
// work in VMs: one method for each request that the daemon answers over its Unix
// socket. The command line is built on it. The types that travel and the error
// codes are those of package api, the only other part of banger that it imports.
// The examples below run as tests, against a real daemon.
//
// # A client
//
// New takes the path of the daemon's socket and does nothing else: a Client holds
// no connection, may be used by any number of goroutines, and need not be closed.
// A daemon may be restarted between two calls. Who the caller is, the daemon learns
// from the kernel: a user sees and touches their own VMs, root those of all. A user
// who is not in the group of the socket gets permission_denied.
//
// Every method takes a context and returns when it ends. Where a VM is asked for,
// ref is its name, its id, or the beginning of its id if no other VM's begins so.
// Programs keep the id: a name can come to mean another VM.
//
// # Errors
//
// Each error is, or wraps, an *api.Error: a code of a closed set for programs,
// a message that names operation, object and reason, and a hint with the next step
// where there is one. api.CodeOf gives the code, api.AsError all three. The codes are
// those of the HTTP interface, of the command line's exit status, and of operations that
// came to nothing. No answer from the daemon, or one that broke off, is unavailable;
// when it came from the end of a context, errors.Is finds the context's error too.
// No request is repeated by itself: after a connection that broke, ask what became
// of it.
//
// # Operations
//
// What takes long (CreateVM, StartVM, StopVM, ...) returns an api.Operation as soon as
// the daemon has taken the request, and goes on in the daemon, also when the caller
// is gone. Wait follows an operation to its end, hands its progress on, and returns
// its error; it survives broken connections. Cancel asks an operation to end:
// what it had begun is undone, and its status is cancelled. An operation is known for
// some minutes after its end, to the daemon that began it.
//
// # Commands
//
// Exec runs a command in a running VM and returns how it ended: an exit status or
// a signal, neither of which is an error. It connects any io.Reader and io.Writer, a
// terminal where asked for, window sizes and signals. The command is a session in
// the guest: if the connection breaks, or the daemon is restarted, Exec attaches to
// the session again and the output arrives complete and once. When ctx ends, Exec
// returns, while the command runs on; send it a signal to end it.
//
// # Leases
//
// An ephemeral VM is deleted by the daemon a few seconds after the last lease on it
// has ended. Hold one with Lease for as long as the VM is needed: the kernel closes
// the connection of a program that dies, however it dies, so that no VM is left.
package client
