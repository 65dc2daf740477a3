package build

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"banger/api"
)

// Ignored returns the rule by which files of the context dir stay behind: what its
// .dockerignore names, or DOCKERFILE.dockerignore beside the Dockerfile, if that is there. The
// rule takes a path relative to dir and whether it is a directory; of one that it leaves
// out nothing below is wanted. The Dockerfile itself is never sent from here.
// (https://docs.docker.com/build/concepts/context/#dockerignore-files)
func Ignored(dir, dockerfile string) (func(name string, directory bool) (bool, error), error) {
	patterns, from, err := ignoreFile(dockerfile+".dockerignore", filepath.Join(dir, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "build: %s: %w", from, err)
	}
	exceptions := m.Exclusions()
	return func(name string, directory bool) (bool, error) {
		out, err := m.MatchesOrParentMatches(name)
		if err != nil {
			return false, api.Errorf(api.CodeInvalid, "build: %s: %w", from, err)
		}
		// With a pattern that takes files back, one below may be wanted again.
		return out && !(directory && exceptions), nil
	}, nil
}

// ignoreFile reads the first of files that exists.
func ignoreFile(files ...string) (patterns []string, name string, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, name, api.Errorf(api.CodeInvalid, "build: %w", err)
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, name, api.Errorf(api.CodeInvalid, "build: %s: %w", name, err)
		}
		return patterns, name, nil
	}
	return nil, "", nil
}

// Arguments reads --build-arg flags: NAME=value, or NAME alone for what lookup knows of it.
// A name that lookup does not know is left out, as if it had not been given.
func Arguments(flags []string, lookup func(string) (string, bool)) (map[string]string, error) {
	args := map[string]string{}
	for _, flag := range flags {
		name, value, given := strings.Cut(flag, "=")
		if name == "" {
			return nil, api.Errorf(api.CodeInvalid, "--build-arg %q: no name", flag).WithHint("it is NAME=value, or NAME for the value that it has here")
		}
		if !given {
			if value, given = lookup(name); !given {
				continue
			}
		}
		args[name] = value
	}
	return args, nil
}
