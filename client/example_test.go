package client_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"banger/api"
	"banger/client"
)

// socket is that of a daemon of the test's own while the examples run; see
// TestExamples.
var socket = cmp.Or(os.Getenv(socketVariable), "/run/banger/bangerd.sock")

// A VM from its creation to its end.
func Example() {
	ctx := context.Background()
	c := client.New(socket)

	vm, op, err := c.CreateVM(ctx, api.CreateVM{Name: "worker", Image: "debian", CPUs: 1, Start: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := c.Wait(ctx, op.ID, nil); err != nil {
		fmt.Println(err)
		return
	}
	status, err := c.Exec(ctx, vm.ID, client.ExecOptions{Command: []string{"uname", "-s"}, Stdout: os.Stdout})
	fmt.Println("exit status", status.Code, err)

	op, err = c.DeleteVM(ctx, vm.ID, true)
	if err == nil {
		_, err = c.Wait(ctx, op.ID, nil)
	}
	fmt.Println("deleted", err)
	// Output:
	// Linux
	// exit status 0 <nil>
	// deleted <nil>
}

// Errors have a code for programs, a message and, often, a hint for people.
func ExampleClient_VM() {
	_, err := client.New(socket).VM(context.Background(), "nobody")
	switch api.CodeOf(err) {
	case api.CodeNotFound:
		fmt.Println("make one:", err)
	case api.CodeUnavailable:
		fmt.Println("start bangerd:", err)
	}
	fmt.Println("hint:", api.AsError(err).Hint)
	// Output:
	// make one: VM "nobody": no such VM
	// hint: banger vm list
}

// A daemon that does not answer is an error as any other.
func ExampleNew() {
	_, err := client.New("/run/there/is/none.sock").System(context.Background())
	fmt.Println(api.CodeOf(err))
	fmt.Println(err)
	// Output:
	// unavailable
	// bangerd does not answer on /run/there/is/none.sock: no such file or directory
}

// What goes wrong after the daemon has taken a request is the operation's error.
func ExampleClient_Wait() {
	ctx := context.Background()
	c := client.New(socket)
	vm, op, err := c.CreateVM(ctx, api.CreateVM{Name: "idle"})
	if err != nil {
		fmt.Println(err)
		return
	}
	op, err = c.Wait(ctx, op.ID, func(p api.Progress) { fmt.Println(p.Step) })
	fmt.Println(op.Kind, op.Status, err)

	// A VM that does not run cannot be stopped.
	op, err = c.StopVM(ctx, vm.ID, api.StopVM{})
	if err != nil {
		fmt.Println(err)
		return
	}
	op, err = c.Wait(ctx, op.ID, nil)
	fmt.Println(op.Kind, op.Status, api.CodeOf(err))

	op, err = c.DeleteVM(ctx, vm.ID, false)
	if err == nil {
		op, err = c.Wait(ctx, op.ID, nil)
	}
	fmt.Println(op.Kind, op.Status, err)
	// Output:
	// vm.create succeeded <nil>
	// vm.stop failed conflict
	// vm.delete succeeded <nil>
}

// Input, output and errors are streams; an exit status is no error.
func ExampleClient_Exec() {
	ctx := context.Background()
	c := client.New(socket)
	vm, op, err := c.CreateVM(ctx, api.CreateVM{Name: "shell", Start: true})
	if err == nil {
		_, err = c.Wait(ctx, op.ID, nil)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	var stdout, stderr bytes.Buffer
	status, err := c.Exec(ctx, vm.ID, client.ExecOptions{
		Command: []string{"sh", "-c", `tr a-z A-Z; echo "$GREETING from $PWD" >&2; exit 3`},
		Env:     []string{"GREETING=hello"},
		Dir:     "/tmp",
		Stdin:   strings.NewReader("shouted\n"),
		Stdout:  &stdout,
		Stderr:  &stderr,
	})
	fmt.Print(stdout.String(), stderr.String())
	fmt.Println(status.Code, err)

	// A signal ends the command; the status says which.
	signals := make(chan string, 1)
	signals <- "TERM"
	status, err = c.Exec(ctx, vm.ID, client.ExecOptions{Command: []string{"sleep", "1000"}, Signals: signals})
	fmt.Println(status.Signal, err)

	if op, err = c.DeleteVM(ctx, vm.ID, true); err == nil {
		_, err = c.Wait(ctx, op.ID, nil)
	}
	fmt.Println("deleted", err)
	// Output:
	// SHOUTED
	// hello from /tmp
	// 3 <nil>
	// TERM <nil>
	// deleted <nil>
}

// An ephemeral VM lives as long as somebody holds a lease on it.
func ExampleClient_Lease() {
	ctx := context.Background()
	c := client.New(socket)
	vm, op, err := c.CreateVM(ctx, api.CreateVM{Ephemeral: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	held, release := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- c.Lease(held, vm.ID) }()
	_, err = c.Wait(ctx, op.ID, nil)
	fmt.Println("work with it", err)

	release()
	fmt.Println("given back", <-ended)
	for err == nil { // the daemon deletes it, some seconds from now
		time.Sleep(100 * time.Millisecond)
		_, err = c.VM(ctx, vm.ID)
	}
	fmt.Println(api.CodeOf(err))
	// Output:
	// work with it <nil>
	// given back <nil>
	// not_found
}

// An image is made of any tar archive of a root file system.
func ExampleClient_ImportImage() {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	text := []byte("hello\n")
	err := errors.Join(
		w.WriteHeader(&tar.Header{Name: "greeting", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}),
		func() error { _, err := w.Write(text); return err }(),
		w.Close())
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	c := client.New(socket)
	image, err := c.ImportImage(ctx, "tiny", &archive)
	fmt.Println(image.Name, len(image.Layers), err)

	_, err = c.ImportImage(ctx, "broken", strings.NewReader("no archive"))
	fmt.Println(api.CodeOf(err))
	fmt.Println("removed", c.RemoveImage(ctx, "tiny"))
	// Output:
	// tiny 1 <nil>
	// invalid
	// removed <nil>
}
