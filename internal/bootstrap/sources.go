package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hostSources returns, as deb822 stanzas (sources.list(5)), the sources below dir
// that have the distribution's own suites and the component main.
func hostSources(dir, codename string) ([]string, error) {
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var stanzas []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parse := oneLine
		if filepath.Ext(file) == ".sources" {
			parse = deb822
		}
		for _, fields := range parse(string(data)) {
			if s := own(fields, codename); s != "" {
				stanzas = append(stanzas, s)
			}
		}
	}
	return stanzas, nil
}

// own returns the part of a source that is the distribution's, "" where none is.
func own(fields map[string]string, codename string) string {
	suites := slices.DeleteFunc(strings.Fields(fields["suites"]), func(s string) bool {
		return s != codename && s != codename+"-updates" && s != codename+"-security"
	})
	if len(suites) == 0 || fields["enabled"] == "no" || fields["uris"] == "" ||
		!slices.Contains(strings.Fields(fields["types"]), "deb") || !slices.Contains(strings.Fields(fields["components"]), "main") {
		return ""
	}
	s := fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n", fields["uris"], strings.Join(suites, " "))
	if by := fields["signed-by"]; by != "" {
		s += "Signed-By: " + by + "\n"
	}
	return s
}

// deb822 reads the stanzas of a .sources file; names of fields in lower case.
func deb822(text string) []map[string]string {
	var stanzas []map[string]string
	fields, last := map[string]string{}, ""
	for line := range strings.Lines(text + "\n\n") {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			if len(fields) > 0 {
				stanzas = append(stanzas, fields)
			}
			fields, last = map[string]string{}, ""
		case line[0] == ' ' || line[0] == '\t': // goes on; an embedded key, mostly
			fields[last] += "\n" + line
		default:
			key, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(key)
			fields[last] = strings.TrimSpace(value)
		}
	}
	return stanzas
}

// oneLine reads lines `deb [options] uri suite components...`.
func oneLine(text string) []map[string]string {
	var sources []map[string]string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		fields := map[string]string{"types": kind}
		if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, "[") {
			options, after, _ := strings.Cut(rest[1:], "]")
			for option := range strings.FieldsSeq(options) {
				if key, value, _ := strings.Cut(option, "="); strings.EqualFold(key, "signed-by") {
					fields["signed-by"] = strings.ReplaceAll(value, ",", " ")
				}
			}
			rest = after
		}
		words := strings.Fields(rest)
		if len(words) < 3 {
			continue
		}
		fields["uris"], fields["suites"], fields["components"] = words[0], words[1], strings.Join(words[2:], " ")
		sources = append(sources, fields)
	}
	return sources
}
