// Command banger is the command line of banger.
package main

import (
	"os"

	"banger/internal/cli"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(cli.Main(os.Args[1:], version)) }
