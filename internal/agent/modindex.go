package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
)

// maxIndex bounds what is read of a file of depmod's, in bytes.
const maxIndex = 32 << 20

// moduleIndex answers which modules a name means, and what they need, out of the
// text files that depmod(8) leaves beside a kernel's modules: modules.dep(5),
// modules.alias, modules.softdep and modules.builtin. One that is absent is empty.
// Names are compared with _ for -, as the kernel writes them.
type moduleIndex struct {
	files     map[string]string   // path below the directory, by the module's name
	needs     map[string][]string // names that have to be loaded before it
	pre, post map[string][]string // names that it would like before and after it
	builtin   map[string]bool
	aliases   []alias
}

// alias says that a name which matches the pattern, path.Match's, means module.
type alias struct{ pattern, module string }

func newModuleIndex() *moduleIndex {
	return &moduleIndex{
		files: map[string]string{}, needs: map[string][]string{},
		pre: map[string][]string{}, post: map[string][]string{}, builtin: map[string]bool{},
	}
}

// readModuleIndex reads the index in dir, that of one kernel.
func readModuleIndex(dir *os.Root) (*moduleIndex, error) {
	x := newModuleIndex()
	for _, name := range []string{"modules.dep", "modules.alias", "modules.softdep", "modules.builtin"} {
		text, err := readBounded(dir, name, maxIndex)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read index of modules: %w", err)
		}
		x.parse(name, text)
	}
	return x, nil
}

// parse takes the text of one of the files, and of another nothing.
func (x *moduleIndex) parse(name, text string) {
	add := map[string]func(fields []string){
		"modules.dep": x.addFile, "modules.alias": x.addAlias, "modules.softdep": x.addSoft, "modules.builtin": x.addBuiltin,
	}[name]
	if add == nil {
		return
	}
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(fields[0], "#") {
			add(fields)
		}
	}
}

// addFile takes `kernel/a.ko: kernel/b.ko kernel/c.ko`.
func (x *moduleIndex) addFile(fields []string) {
	file, ok := strings.CutSuffix(fields[0], ":")
	if !ok {
		return
	}
	name := moduleName(file)
	x.files[name] = file
	for _, need := range fields[1:] {
		x.needs[name] = append(x.needs[name], moduleName(need))
	}
}

// addAlias takes `alias net-pf-16-proto-12 nfnetlink`.
func (x *moduleIndex) addAlias(fields []string) {
	if len(fields) == 3 && fields[0] == "alias" {
		x.aliases = append(x.aliases, alias{underscores(fields[1]), moduleName(fields[2])})
	}
}

// addSoft takes `softdep a pre: b c post: d`.
func (x *moduleIndex) addSoft(fields []string) {
	if len(fields) < 3 || fields[0] != "softdep" {
		return
	}
	name := moduleName(fields[1])
	var list map[string][]string
	for _, word := range fields[2:] {
		switch {
		case word == "pre:":
			list = x.pre
		case word == "post:":
			list = x.post
		case list != nil:
			list[name] = append(list[name], moduleName(word))
		}
	}
}

func (x *moduleIndex) addBuiltin(fields []string) { x.builtin[moduleName(fields[0])] = true }

// resolve returns the names of the modules that name means: one of that name, or all
// that have a matching alias. None is no error: known says whether the kernel has it
// built in.
func (x *moduleIndex) resolve(name string) (modules []string, known bool) {
	name = underscores(name)
	if x.files[name] != "" {
		return []string{name}, true
	}
	for _, a := range x.aliases {
		matched, err := path.Match(a.pattern, name)
		if (a.pattern == name || err == nil && matched) && x.files[a.module] != "" && !slices.Contains(modules, a.module) {
			modules = append(modules, a.module)
		}
	}
	return modules, len(modules) > 0 || x.builtin[name]
}

// step is one file to load.
type step struct {
	name, file string
	wanted     bool // nothing that was asked for needs it: it may fail
}

// plan yields the files to load for a module, each after those that it needs. An
// index that goes in circles is followed once.
func (x *moduleIndex) plan(module string) iter.Seq[step] {
	return func(yield func(step) bool) {
		seen := map[string]bool{}
		var visit func(name string, wanted bool) bool
		visit = func(name string, wanted bool) bool {
			if seen[name] || x.files[name] == "" {
				return true // one that is built in, perhaps
			}
			seen[name] = true
			for _, n := range x.pre[name] {
				if !visit(n, true) {
					return false
				}
			}
			for _, n := range slices.Backward(x.needs[name]) { // the last of them needs no other
				if !visit(n, wanted) {
					return false
				}
			}
			if !yield(step{name, x.files[name], wanted}) {
				return false
			}
			for _, n := range x.post[name] {
				if !visit(n, true) {
					return false
				}
			}
			return true
		}
		visit(module, false)
	}
}

// moduleName is the name of the module in a file such as kernel/net/br-x.ko.xz.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return underscores(name)
}

// underscores is name as the kernel writes it; a set in a pattern, as in [0-9], stays.
func underscores(name string) string {
	b := []byte(name)
	inSet := false
	for i, c := range b {
		switch {
		case c == '[':
			inSet = true
		case c == ']':
			inSet = false
		case c == '-' && !inSet:
			b[i] = '_'
		}
	}
	return string(b)
}

func readBounded(dir *os.Root, name string, most int64) (string, error) {
	f, err := dir.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: longer than %d bytes", name, most)
	}
	return string(text), err
}
