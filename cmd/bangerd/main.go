// Command bangerd is the daemon: it owns the VMs of one installation and serves
// the API on a Unix socket. It runs as root.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"banger/api"
	"banger/internal/config"
	"banger/internal/daemon"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	readyFD := flag.Int("ready-fd", -1, "descriptor on which to say that the daemon serves, or why it does not")
	examine := flag.Bool("doctor", false, "examine the installation without a daemon, print what is found as JSON, and end")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "bangerd serves one installation of banger; `banger` starts it when it is needed.\n"+
			"BANGER_STATE_DIR, BANGER_RUN_DIR and BANGER_CONFIG say which one.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// VMMs inherit this: a write beyond their limit is to be an error, not their end.
	signal.Ignore(syscall.SIGXFSZ, syscall.SIGHUP, syscall.SIGPIPE)

	if *examine {
		if err := json.NewEncoder(os.Stdout).Encode(daemon.Diagnose(ctx, config.FromEnv(), version)); err != nil {
			fmt.Fprintln(os.Stderr, "bangerd:", err)
			return 1
		}
		return 0
	}
	ready := func() {}
	var report *os.File
	if *readyFD >= 0 {
		report = os.NewFile(uintptr(*readyFD), "ready")
		syscall.CloseOnExec(*readyFD)
		ready = func() {
			fmt.Fprintln(report, "ready")
			report.Close()
			report = nil
		}
	}
	err := daemon.Run(ctx, config.FromEnv(), version, ready)
	if err == nil {
		return 0
	}
	e := api.AsError(err)
	if report != nil {
		json.NewEncoder(report).Encode(e)
	}
	fmt.Fprintln(os.Stderr, "bangerd:", e.Message)
	if e.Hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", e.Hint)
	}
	return e.Code.ExitStatus()
}
