package archtest

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/dependencies.md gives a reason for every module that is imported, and
// for nothing else.
func TestDependenciesHaveReasons(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, line := range regexp.MustCompile("(?m)^- `([^`]+)`: .+$").FindAllStringSubmatch(string(text), -1) {
		used[line[1]] = false
	}
	used["honnef.co/go/tools"] = true // a tool is imported by nobody
	modules := slices.Collect(maps.Keys(used))
	for _, f := range moduleFiles(t) {
		for _, spec := range f.ast.Imports {
			imported := importPath(spec)
			first, _, _ := strings.Cut(imported, "/")
			if !strings.Contains(first, ".") {
				continue // the standard library, or a package of ours
			}
			i := slices.IndexFunc(modules, func(module string) bool {
				return imported == module || strings.HasPrefix(imported, module+"/")
			})
			if i < 0 {
				t.Errorf("%s: docs/dependencies.md gives no reason for %s", f.path, imported)
				continue
			}
			used[modules[i]] = true
		}
	}
	for _, module := range modules {
		if !used[module] {
			t.Errorf("docs/dependencies.md names %s, which nothing imports", module)
		}
	}
}
