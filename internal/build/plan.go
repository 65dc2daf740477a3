// Package build reads what the command line needs to know of a Dockerfile and of its
// context before a builder VM gets them: which images the build begins with, and which
// files it may see. It runs in the CLI, as the user. Building is the builder's.
package build

import (
	"bytes"
	"errors"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"banger/api"
)

// MaxDockerfile is how many bytes a Dockerfile may have.
const MaxDockerfile = 1 << 20

// scratch is the image without content, which nobody has to have
// (https://docs.docker.com/build/building/base-images/#create-a-minimal-base-image-using-scratch).
const scratch = "scratch"

// Image is an image that a Dockerfile refers to.
type Image struct {
	Written string // as the Dockerfile has it, with variables
	Ref     string // with their values
}

// Images returns the images that a Dockerfile refers to, in its order and each once: what
// stages begin with (FROM), and what is taken out of images (COPY --from, RUN --mount=from=),
// up to the stage target; an empty one means the last. Args are the build arguments, which
// may stand in FROM. What is no Dockerfile is invalid, with the line.
func Images(name string, dockerfile []byte, args map[string]string, target string) ([]Image, error) {
	stages, given, err := parse(name, dockerfile)
	if err != nil {
		return nil, err
	}
	last, err := lastStage(name, stages, target)
	if err != nil {
		return nil, err
	}
	env, err := globals(name, given, args)
	if err != nil {
		return nil, err
	}
	var images []Image
	known := map[string]bool{scratch: true} // names of stages, and images as they were written
	add := func(written, ref string) {
		if !known[strings.ToLower(ref)] && !known[written] {
			known[written] = true
			images = append(images, Image{written, ref})
		}
	}
	for i, stage := range stages[:last+1] {
		base, err := expand(stage.BaseName, env)
		if err != nil {
			return nil, bad(name, stage.Location, "FROM %s: %w", stage.BaseName, err)
		}
		if base == "" {
			return nil, bad(name, stage.Location, "FROM %s: no image", stage.BaseName).WithHint("give it with --build-arg")
		}
		add(stage.BaseName, base)
		for _, c := range stage.Commands {
			for _, from := range sources(c) {
				if n, err := strconv.Atoi(from); err == nil && n < i || from == "" {
					continue // an earlier stage, by its number
				}
				add(from, from)
			}
		}
		if stage.Name != "" {
			known[strings.ToLower(stage.Name)] = true
		}
	}
	return images, nil
}

func parse(name string, dockerfile []byte) ([]instructions.Stage, []instructions.ArgCommand, error) {
	tree, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return nil, nil, invalid(name, err)
	}
	stages, args, err := instructions.Parse(tree.AST, nil)
	if err != nil {
		return nil, nil, invalid(name, err)
	}
	if len(stages) == 0 {
		return nil, nil, api.Errorf(api.CodeInvalid, "build: %s has no FROM", name)
	}
	return stages, args, nil
}

// invalid says where in a Dockerfile the parser met an error.
func invalid(name string, err error) error {
	text := err.Error()
	if at, ok := errors.AsType[*parser.LocationError](err); ok && len(at.Locations) > 0 {
		_, after, said := strings.Cut(text, "dockerfile parse error on line ")
		if _, after, ok := strings.Cut(after, ": "); said && ok {
			text = after
		}
		return bad(name, at.Locations[0], "%s", text)
	}
	return api.Errorf(api.CodeInvalid, "build: %s: %s", name, text)
}

func bad(name string, at []parser.Range, format string, args ...any) *api.Error {
	if len(at) > 0 && at[0].Start.Line > 0 {
		name += ":" + strconv.Itoa(at[0].Start.Line)
	}
	return api.Errorf(api.CodeInvalid, "build: "+name+": "+format, args...)
}

// lastStage is the number of the stage that is wanted.
func lastStage(name string, stages []instructions.Stage, target string) (int, error) {
	if target == "" {
		return len(stages) - 1, nil
	}
	if i, ok := instructions.HasStage(stages, target); ok {
		return i, nil
	}
	if i, err := strconv.Atoi(target); err == nil && i >= 0 && i < len(stages) {
		return i, nil
	}
	var names []string
	for _, s := range stages {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	e := api.Errorf(api.CodeInvalid, "build: %s has no stage %q", name, target)
	if len(names) > 0 {
		return 0, e.WithHint("it has %s", strings.Join(names, ", "))
	}
	return 0, e
}

// globals are the build arguments declared before the first FROM, as FROM sees them.
func globals(name string, declared []instructions.ArgCommand, given map[string]string) (map[string]string, error) {
	env := map[string]string{}
	for _, c := range declared {
		for _, arg := range c.Args {
			value, ok := given[arg.Key]
			switch {
			case ok:
			case arg.Value != nil:
				var err error
				if value, err = expand(*arg.Value, env); err != nil {
					return nil, bad(name, c.Location(), "ARG %s: %w", arg.Key, err)
				}
			default:
				continue
			}
			env[arg.Key] = value
		}
	}
	return env, nil
}

// expand puts variables into a word, with the rules of Dockerfiles.
func expand(word string, env map[string]string) (string, error) {
	var list []string
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	out, _, err := shell.NewLex('\\').ProcessWord(word, shell.EnvsFromSlice(list))
	return out, err
}

// sources are the images or stages that a command takes files from.
func sources(c instructions.Command) []string {
	switch c := c.(type) {
	case *instructions.CopyCommand:
		return []string{c.From}
	case *instructions.RunCommand:
		var from []string
		for _, m := range instructions.GetMounts(c) {
			from = append(from, m.From)
		}
		return from
	}
	return nil
}
