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

// hostSources returns, as deb822 stanzas (sources.list(5)), the sources below dir of the
// release that host, which is its os-release(5), describes, and their suite. A suite is
// known by its codename; where none is, by an alias such as "stable". None of other
// suites is taken along, such as backports or those of another release.
func hostSources(dir string, host map[string]string) (suite string, stanzas []string, err error) {
	sources, err := readSources(dir)
	if err != nil {
		return "", nil, err
	}
	for _, suite := range suites(host) {
		var stanzas []string
		whole := false
		for _, fields := range sources {
			if s := own(fields, suite); s != "" {
				stanzas = append(stanzas, s)
				whole = whole || slices.Contains(strings.Fields(fields["suites"]), suite)
			}
		}
		if whole { // and not updates alone
			return suite, stanzas, nil
		}
	}
	return "", nil, nil
}

// suites are the names that the host's release may have in its sources. Debian's testing
// and unstable have no VERSION_ID.
func suites(host map[string]string) []string {
	names := []string{host["VERSION_CODENAME"]}
	switch {
	case host["ID"] != "debian":
		return names
	case host["VERSION_ID"] != "":
		return append(names, "stable", "oldstable", "oldoldstable")
	}
	return append(names, "testing", "unstable", "sid")
}

func readSources(dir string) (sources []map[string]string, err error) {
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if filepath.Ext(file) == ".sources" {
			sources = append(sources, deb822(string(data))...)
		} else {
			sources = append(sources, oneLine(string(data))...)
		}
	}
	return sources, nil
}

// options are what is kept of a source besides where it is, by its name in each style.
var options = []struct{ oneLine, deb822 string }{
	{"signed-by", "Signed-By"}, {"trusted", "Trusted"}, {"check-valid-until", "Check-Valid-Until"}, {"arch", "Architectures"},
}

// own returns the part of a source that is of a suite, "" where none is.
func own(fields map[string]string, suite string) string {
	found := slices.DeleteFunc(strings.Fields(fields["suites"]), func(s string) bool {
		return s != suite && s != suite+"-updates" && s != suite+"-security" && s != suite+"/updates"
	})
	uris := slices.DeleteFunc(strings.Fields(fields["uris"]), func(u string) bool { return strings.HasPrefix(u, "cdrom:") })
	off := slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.ToLower(fields["enabled"]))
	if len(found) == 0 || off || len(uris) == 0 ||
		!slices.Contains(strings.Fields(fields["types"]), "deb") || !slices.Contains(strings.Fields(fields["components"]), "main") {
		return ""
	}
	s := fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n", strings.Join(uris, " "), strings.Join(found, " "))
	for _, o := range options {
		if value := fields[strings.ToLower(o.deb822)]; value != "" {
			s += o.deb822 + ": " + value + "\n"
		}
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
		line = strings.TrimSpace(line)
		at := strings.IndexAny(line, " \t[")
		if at < 0 {
			continue
		}
		fields, rest := map[string]string{"types": line[:at]}, strings.TrimSpace(line[at:])
		if strings.HasPrefix(rest, "[") {
			inside, after, _ := strings.Cut(rest[1:], "]")
			for word := range strings.FieldsSeq(inside) {
				key, value, _ := strings.Cut(word, "=")
				for _, o := range options {
					if strings.EqualFold(key, o.oneLine) {
						fields[strings.ToLower(o.deb822)] = strings.ReplaceAll(value, ",", " ")
					}
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
