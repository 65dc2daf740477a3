// Tool is the one program of images without a shell: it says how it was started, serves
// until it is told to quit, and is process 1 where it is the image's init.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if os.Getpid() == 1 {
		dir, _ := os.Getwd()
		fmt.Printf("process 1 of user %d in %s with A=%q\n", os.Getuid(), dir, os.Getenv("A"))
		time.Sleep(time.Hour) // a process 1 that ends is a panic of the kernel
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Println(err)
		os.Exit(7)
	}
}

func run(what string, args []string) error {
	switch what {
	case "say":
		dir, err := os.Getwd()
		groups, _ := os.Getgroups() // none
		fmt.Println(os.Getuid(), os.Getgid(), groups, dir, os.Getenv("A"), os.Getenv("B"), os.Getenv("HOME"), args)
		return err
	case "touch":
		return os.WriteFile(args[0], nil, 0o644)
	case "check":
		if _, err := os.Stat("/broken"); err == nil {
			return fmt.Errorf("it is broken")
		}
		conn, err := net.Dial("tcp", "127.0.0.1:8080")
		if err == nil {
			err = conn.Close()
		}
		return err
	case "serve":
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGQUIT, syscall.SIGTERM)
		l, err := net.Listen("tcp", ":8080")
		if err != nil {
			return err
		}
		fmt.Println("it serves")
		fmt.Println("told to end:", <-told)
		return l.Close()
	}
	return fmt.Errorf("%s: what?", what)
}
