// Package archtest holds the rules of the code base that a compiler does not
// know: which package may import which, and what each file has to look like.
package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module   = "banger"
	maxLines = 500
)

// leaves may be imported by every package but themselves and internal/linux.
var leaves = []string{"api", "internal/config", "internal/failpoint"}

// directions lists, for each package, which packages of ours it may import
// besides the leaves. Imports go downward only and siblings never meet. A new
// package has to be placed here.
var directions = map[string][]string{
	"api":                      {},
	"client":                   {},
	"cmd/banger":               {"internal/cli"},
	"cmd/banger-agent":         {"internal/agent"},
	"cmd/bangerd":              {"internal/daemon"},
	"internal/agent":           {"internal/archive", "internal/guest/wire", "internal/linux"},
	"internal/agentbin":        {},
	"internal/archive":         {"internal/linux"},
	"internal/archtest":        {},
	"internal/bootstrap":       {"internal/linux"},
	"internal/build":           {},
	"internal/cli":             {"client", "internal/archive", "internal/bootstrap", "internal/build", "internal/linux", "internal/sshconf", "internal/systemd"},
	"internal/config":          {},
	"internal/daemon":          {"internal/agentbin", "internal/disk", "internal/doctor", "internal/guest", "internal/identity", "internal/image", "internal/kernel", "internal/linux", "internal/network", "internal/operation", "internal/registry", "internal/resource", "internal/server", "internal/space", "internal/store", "internal/systemd", "internal/usage", "internal/vm", "internal/vmm", "internal/vmm/firecracker", "internal/vmm/qemu"},
	"internal/intake":          {},
	"internal/doctor":          {"internal/linux", "internal/resource", "internal/space", "internal/vmm"},
	"internal/failpoint":       {},
	"internal/disk":            {"internal/linux", "internal/resource", "internal/space"},
	"internal/guest":           {"internal/guest/wire"},
	"internal/guest/wire":      {},
	"internal/hosttest":        {"internal/linux"},
	"internal/identity":        {"internal/linux", "internal/resource"},
	"internal/image":           {"internal/intake", "internal/linux", "internal/registry", "internal/resource", "internal/space"},
	"internal/kernel":          {"internal/intake", "internal/guest/wire", "internal/linux", "internal/resource", "internal/space"},
	"internal/linux":           {"internal/failpoint"},
	"internal/network":         {"internal/linux", "internal/resource"},
	"internal/operation":       {},
	"internal/program":         {"internal/guest/wire"},
	"internal/registry":        {},
	"internal/resource":        {"internal/linux"},
	"internal/server":          {"internal/image", "internal/kernel", "internal/linux", "internal/operation", "internal/vm"},
	"internal/space":           {"internal/linux"},
	"internal/sshconf":         {},
	"internal/store":           {"internal/image", "internal/kernel", "internal/resource", "internal/vm"},
	"internal/usage":           {"internal/image", "internal/kernel", "internal/resource", "internal/space"},
	"internal/vm":              {"internal/disk", "internal/guest", "internal/guest/wire", "internal/linux", "internal/network", "internal/operation", "internal/program", "internal/resource", "internal/space", "internal/vmm"},
	"internal/systemd":         {},
	"internal/vmm":             {"internal/linux", "internal/resource", "internal/systemd"},
	"internal/vmm/firecracker": {"internal/guest/wire", "internal/linux", "internal/vmm"},
	"internal/vmm/qemu":        {"internal/linux", "internal/resource", "internal/vmm"},
	"internal/vmm/vmmtest":     {"internal/guest", "internal/guest/wire", "internal/linux", "internal/resource", "internal/vmm"},
	"test/bench":               {"internal/hosttest"},
	"test/e2e":                 {"internal/hosttest"},
	"test/host":                {"internal/hosttest"},
}

// only maps packages of others to the only ones of ours that may import them.
var only = map[string][]string{
	"golang.org/x/sys/unix":                       {"internal/linux"},
	"github.com/vishvananda/netlink":              {"internal/linux"},
	"github.com/google/nftables":                  {"internal/linux"},
	"github.com/google/nftables/binaryutil":       {"internal/linux"},
	"github.com/google/nftables/expr":             {"internal/linux"},
	"github.com/coreos/go-systemd/v22/activation": {"internal/systemd"},
	"github.com/coreos/go-systemd/v22/daemon":     {"internal/systemd"},
	"github.com/coreos/go-systemd/v22/dbus":       {"internal/systemd"},
	"database/sql":                                {"internal/store"},
	"modernc.org/sqlite":                          {"internal/store"},
}

// file is a parsed Go file of this module.
type file struct {
	path  string // relative to the module's root
	dir   string // likewise: the package, as in directions
	test  bool
	lines int
	ast   *ast.File
}

func TestImportDirections(t *testing.T) {
	for _, f := range moduleFiles(t) {
		allowed, known := directions[f.dir]
		if !known {
			t.Errorf("%s: package %s has no place in the table of this test", f.path, f.dir)
			continue
		}
		if f.test {
			continue // a test may use anything that it can import
		}
		for imported := range f.ownImports() {
			leaf := slices.Contains(leaves, imported) && f.dir != "internal/linux" && f.dir != "api"
			if !leaf && !slices.Contains(allowed, imported) {
				t.Errorf("%s: %s must not import %s", f.path, f.dir, imported)
			}
		}
	}
}

func TestReservedImports(t *testing.T) {
	for _, f := range moduleFiles(t) {
		for _, spec := range f.ast.Imports {
			users, reserved := only[importPath(spec)]
			if reserved && !f.test && !slices.Contains(users, f.dir) {
				t.Errorf("%s: only %s may import %s", f.path, strings.Join(users, ", "), importPath(spec))
			}
		}
	}
}

// Every package tells a newcomer what it is for.
func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range moduleFiles(t) {
		doc, name := f.ast.Doc.Text(), f.ast.Name.Name
		if name == "main" {
			name = path.Base(f.dir)
		}
		documented[f.dir] = documented[f.dir] || slices.ContainsFunc([]string{
			"Package " + name + " ",
			"Command " + name + " ",
			strings.ToUpper(name[:1]) + name[1:] + " ",
		}, func(start string) bool { return strings.HasPrefix(doc, start) })
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment that starts with the package's name", dir)
		}
	}
}

// What runs before main cannot be seen from main.
func TestNoInitFunctions(t *testing.T) {
	for _, f := range moduleFiles(t) {
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: has an init function", f.path)
			}
		}
	}
}

func TestFileLength(t *testing.T) {
	for _, f := range moduleFiles(t) {
		if f.lines > maxLines {
			t.Errorf("%s: %d lines, more than %d", f.path, f.lines, maxLines)
		}
	}
}

// ownImports yields the packages of this module that f imports.
func (f file) ownImports() map[string]bool {
	own := map[string]bool{}
	for _, spec := range f.ast.Imports {
		if rest, ok := strings.CutPrefix(importPath(spec), module+"/"); ok {
			own[rest] = true
		}
	}
	return own
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return p
}

// moduleFiles parses every Go file of the module, which is two directories up.
func moduleFiles(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	var files []file
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(d.Name(), ".") && name != root
		if d.IsDir() && (hidden || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		files = append(files, file{
			path:  filepath.ToSlash(rel),
			dir:   path.Dir(filepath.ToSlash(rel)),
			test:  strings.HasSuffix(rel, "_test.go"),
			lines: fset.File(parsed.Package).LineCount(),
			ast:   parsed,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files below %s: is this the module?", len(files), root)
	}
	return files
}
