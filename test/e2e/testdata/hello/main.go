// Hello is what the tests run in a container: it says its arguments, its host name
// and its addresses.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	name, err := os.Hostname()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("hello", os.Args[1:], name, addresses)
}
