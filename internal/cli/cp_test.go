package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"banger/api"
)

func TestParsePlace(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]place{
		"-":            {std: true, path: "-"},
		"a":            {path: "a", base: "a"},
		"a/":           {path: "a", base: "a", dir: true},
		"a/.":          {path: "a", base: "a", dir: true, contents: true},
		".":            {path: ".", base: filepath.Base(here), dir: true, contents: true},
		"..":           {path: "..", base: filepath.Base(filepath.Dir(here))},
		"/a/../b":      {path: "/b", base: "b"},
		"/":            {path: "/", base: "/", dir: true, contents: true},
		"./vm:file":    {path: "vm:file", base: "vm:file"},
		"/dir/vm:file": {path: "/dir/vm:file", base: "vm:file"},
		":a":           {path: ":a", base: ":a"},
		"vm:/a":        {vm: "vm", path: "/a", base: "a"},
		"vm:a/":        {vm: "vm", path: "/a", base: "a", dir: true},
		"vm:../../a":   {vm: "vm", path: "/a", base: "a"},
		"vm:/a:b":      {vm: "vm", path: "/a:b", base: "a:b"},
		"vm:/":         {vm: "vm", path: "/", base: "/", dir: true, contents: true},
		"vm:.":         {vm: "vm", path: "/", base: "/", dir: true, contents: true},
	} {
		if got, err := parsePlace(arg); err != nil || got != want {
			t.Errorf("%s: %+v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "vm:"} {
		if _, err := parsePlace(arg); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", arg, err)
		}
	}
}

// TestTarget is the table of docker cp: a file or a directory, with or without /.,
// to nothing, a file or a directory, with or without a slash at the end.
func TestTarget(t *testing.T) {
	file, dir, none := found{exists: true, path: "/x/real"}, found{exists: true, dir: true, path: "/x/real"}, found{}
	for _, tc := range []struct {
		src    string
		srcDir bool
		dst    string
		at     found
		parent string
		name   string
		code   api.Code
	}{
		{"vm:/s/f", false, "/x/d", none, "/x", "d", ""},
		{"vm:/s/f", false, "/x/d/", none, "", "", api.CodeNotFound},
		{"vm:/s/f", false, "/x/d", file, "/x", "real", ""},
		{"vm:/s/f", false, "/x/d/", file, "", "", api.CodeConflict},
		{"vm:/s/f", false, "/x/d", dir, "/x/real", "f", ""},
		{"vm:/s/f", false, "/x/d/", dir, "/x/real", "f", ""},
		{"vm:/s/f/", false, "/x/d", dir, "", "", api.CodeConflict},
		{"vm:/s/f/.", false, "/x/d", none, "", "", api.CodeConflict},
		{"vm:/s/d", true, "/x/d", none, "/x", "d", ""},
		{"vm:/s/d", true, "/x/d/", none, "/x", "d", ""},
		{"vm:/s/d/.", true, "/x/d", none, "/x", "d", ""},
		{"vm:/s/d", true, "/x/d", file, "", "", api.CodeConflict},
		{"vm:/s/d/.", true, "/x/d", file, "", "", api.CodeConflict},
		{"vm:/s/e", true, "/x/d", dir, "/x/real", "e", ""},
		{"vm:/s/e/", true, "/x/d", dir, "/x/real", "e", ""},
		{"vm:/s/e/.", true, "/x/d", dir, "/x/real", "", ""},
		{"vm:/", true, "/x/d", dir, "/x/real", "", ""},
	} {
		src, err := parsePlace(tc.src)
		dst, derr := parsePlace(tc.dst)
		if err := errors.Join(err, derr); err != nil {
			t.Fatal(err)
		}
		parent, name, err := target(src, tc.srcDir, dst, tc.at)
		if parent != tc.parent || name != tc.name || api.CodeOf(err) != tc.code {
			t.Errorf("%s (directory: %v) to %s (%+v): %q, %q, %v", tc.src, tc.srcDir, tc.dst, tc.at, parent, name, err)
		}
	}
}

func TestCopyRefused(t *testing.T) {
	for _, args := range [][2]string{{"a:/x", "b:/y"}, {"x", "y"}, {"-", "-"}, {"", "a:/"}} {
		d, _, _ := without(t)
		if err := d.copy(t.Context(), args[0], args[1], copyFlags{}); err == nil || api.AsError(err).Hint == "" {
			t.Errorf("%q: %v", args, err)
		}
	}
}
