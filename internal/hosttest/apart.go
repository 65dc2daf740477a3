package hosttest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// apart says, in the environment, that the process is to run a test of its own.
	apart = "BANGER_TEST_APART"
	// timesFile names, in the environment, a file to which what each test took is added.
	timesFile = "BANGER_TEST_TIMES"
)

// passed are the flags of `go test` that mean for one test what they mean for all. With
// another one, such as those for profiles, the tests run in one process.
var passed = []string{"test.v", "test.short", "test.skip", "test.count", "test.failfast", "test.paniconexit0", "test.gocoverdir"}

// replaced are those that mean something else for one test.
var replaced = []string{"test.run", "test.timeout", "test.parallel", "test.testlogfile"}

// MainApart is Main with each test in a process and a network namespace of its own, and
// as many at once as -parallel says: the tests need not know of each other, and may
// change their network. TestMain calls it with its testing.M.
func MainApart(m interface{ Run() int }) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 || os.Getenv(apart) != "" || !separable() {
		Main(m)
	}
	names, err := list()
	if err != nil {
		fmt.Fprintln(os.Stderr, "list the tests:", err)
		os.Exit(1)
	}
	os.Exit(runApart(names))
}

// separable tells whether the tests can run in processes of their own and leave what they
// would leave in one.
func separable() bool {
	can := true
	flag.Visit(func(f *flag.Flag) {
		can = can && (slices.Contains(passed, f.Name) || slices.Contains(replaced, f.Name))
	})
	// One that selects subtests is about one test, as a rule.
	return can && !strings.Contains(flag.Lookup("test.run").Value.String(), "/")
}

// list returns the names of the tests that -run selects.
func list() ([]string, error) {
	run := flag.Lookup("test.run").Value.String()
	if run == "" {
		run = "."
	}
	out, err := exec.Command("/proc/self/exe", "-test.list="+run).Output()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool {
		return strings.HasPrefix(name, "Benchmark")
	}), nil
}

// runApart runs tests and returns the exit status of all.
func runApart(names []string) int {
	value := func(name string) any { return flag.Lookup(name).Value.(flag.Getter).Get() }
	var deadline time.Time
	if timeout := value("test.timeout").(time.Duration); timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	var (
		mu     sync.Mutex // of what follows
		status int
		group  sync.WaitGroup
		turn   = make(chan struct{}, value("test.parallel").(int))
	)
	for _, name := range names {
		turn <- struct{}{}
		group.Go(func() {
			defer func() { <-turn }()
			began := time.Now()
			out, err := alone(name, deadline)
			mu.Lock()
			defer mu.Unlock()
			_, _ = os.Stdout.Write(out) // who reads may be gone
			if err == nil {
				err = tellTime(name, time.Since(began))
			}
			if err != nil {
				fmt.Printf("%s: %v\n", name, err)
				status = 1
			}
		})
	}
	group.Wait()
	if status != 0 {
		fmt.Println("FAIL")
	} else {
		fmt.Println("PASS")
	}
	return status
}

// alone runs one test and returns what it printed, without the last line: that is for all.
func alone(name string, deadline time.Time) ([]byte, error) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+regexp.QuoteMeta(name)+"$")
	flag.Visit(func(f *flag.Flag) {
		if slices.Contains(passed, f.Name) {
			cmd.Args = append(cmd.Args, "-"+f.Name+"="+f.Value.String())
		}
	})
	if !deadline.IsZero() {
		// It ends by itself and shows where it was.
		left := max(time.Until(deadline), time.Second)
		cmd.Args = append(cmd.Args, "-test.timeout="+left.String())
	}
	cmd.Env = append(os.Environ(), apart+"="+name)
	out, err := cmd.CombinedOutput()
	lines := bytes.SplitAfter(out, []byte("\n"))
	lines = slices.DeleteFunc(lines, func(line []byte) bool {
		word := strings.TrimSpace(strings.TrimPrefix(string(line), "\x16")) // test2json's mark
		return word == "PASS" || word == "FAIL"
	})
	return bytes.Join(lines, nil), err
}

// tellTime adds what a test took to the file for that, where there is one.
func tellTime(name string, took time.Duration) error {
	path := os.Getenv(timesFile)
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, fmt.Sprintf("%6.1f s  %s\n", took.Seconds(), name))
	return errors.Join(err, f.Close())
}
