package cli

import (
	"bufio"
	"io"
	"os"
	"strings"

	"banger/api"
)

// maxEnvFile bounds a file of variables; what a session may be opened with is less.
const maxEnvFile = 1 << 20

// environment is the variables of the files, then the given ones, as NAME=value. A
// later one of a name counts. NAME alone takes the caller's value, if there is one.
func environment(given, files []string) ([]string, error) {
	var env []string
	add := func(where, text string) error {
		name, _, hasValue := strings.Cut(text, "=")
		if name == "" || strings.ContainsAny(name, " \t\x00") || strings.Contains(text, "\x00") {
			return api.Errorf(api.CodeInvalid, "%s: %q is not NAME=value", where, text).WithHint("--env NAME=value, or --env NAME for your own value")
		}
		if hasValue {
			env = append(env, text)
		} else if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
		return nil
	}
	for _, name := range files {
		lines, err := envLines(name)
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			if err := add(name, line); err != nil {
				return nil, err
			}
		}
	}
	for _, text := range given {
		if err := add("--env", text); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// envLines returns the lines of a file that are neither empty nor comments (#).
func envLines(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "--env-file: %w", err).WithHint("name a file of lines NAME=value")
	}
	defer f.Close()
	var lines []string
	scan := bufio.NewScanner(io.LimitReader(f, maxEnvFile+1))
	scan.Buffer(nil, maxEnvFile)
	read := 0
	for scan.Scan() {
		line := strings.TrimLeft(strings.TrimSuffix(scan.Text(), "\r"), " \t")
		if read += len(scan.Bytes()) + 1; read > maxEnvFile {
			break
		}
		if line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if err := scan.Err(); err != nil || read > maxEnvFile {
		if err == nil {
			err = bufio.ErrTooLong
		}
		return nil, api.Errorf(api.CodeInvalid, "--env-file: read %s: %w", name, err).WithHint("it may have %d bytes", maxEnvFile)
	}
	return lines, nil
}
