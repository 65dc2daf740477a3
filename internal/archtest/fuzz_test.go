package archtest

import (
	"go/ast"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFuzzTargetsHaveCorpora wants some inputs committed beside each fuzz target, with
// which every run of the tests begins; make fuzz runs whatever `go test -list` names.
func TestFuzzTargetsHaveCorpora(t *testing.T) {
	targets := 0
	for _, f := range moduleFiles(t) {
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || !f.test || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
				continue
			}
			targets++
			dir := filepath.Join("..", "..", filepath.FromSlash(f.dir), "testdata", "fuzz", fn.Name.Name)
			if inputs, err := os.ReadDir(dir); err != nil || len(inputs) == 0 {
				t.Errorf("%s: %s has no inputs in testdata/fuzz (%v): go test -fuzz finds some, those that it keeps in $(go env GOCACHE)/fuzz", f.path, fn.Name.Name, err)
			}
		}
	}
	if targets < 10 {
		t.Errorf("%d fuzz targets only", targets)
	}
}
