package api

import (
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// TrailerError is the HTTP trailer with which an answer that holds an archive of
// files says, as an Error in JSON, why it had to end before the archive did.
const TrailerError = "Banger-Error"

// maxPath is PATH_MAX of limits.h without its final NUL.
const maxPath = 4095

// The kinds of files.
const (
	FileRegular   = "file"
	FileDirectory = "directory"
	FileSymlink   = "symlink"
	FileOther     = "other" // a device, a pipe or a socket
)

// File is what a path in a VM leads to.
type File struct {
	Path     string    `json:"path" doc:"Where it is; with follow, what the links in the path lead to."`
	Kind     string    `json:"kind" enum:"file,directory,symlink,other" doc:"What it is; other is a device, a pipe or a socket."`
	Size     int64     `json:"size" doc:"Bytes."`
	Mode     uint32    `json:"mode" doc:"Permissions and the setuid, setgid and sticky bits, as in chmod(2)."`
	Modified time.Time `json:"modified" doc:"When its content was last changed."`
	Target   string    `json:"target,omitempty" doc:"What a symbolic link says."`
}

// ReadFiles says which files of a VM are read, as a tar archive.
type ReadFiles struct {
	Path          string `query:"path" required:"true" doc:"Absolute path of a file or directory in the VM."`
	Name          string `query:"name" doc:"What it is called in the archive; its own name, or . for a directory, where this is empty."`
	Follow        bool   `query:"follow" doc:"Where the path names a symbolic link, take what it leads to."`
	OneFileSystem bool   `query:"one_file_system" doc:"Leave out what is in directories where other file systems are mounted."`
}

// WriteFiles says where and how a tar archive is extracted in a VM.
type WriteFiles struct {
	Path    string `query:"path" required:"true" doc:"Absolute path of a directory in the VM, which must exist."`
	Name    string `query:"name" doc:"What the archive's one tree or file is to be called in that directory; where this is empty, everything keeps its name."`
	Archive bool   `query:"archive" doc:"Keep owners (by number), setuid and setgid bits and extended attributes; otherwise everything belongs to root and has none of these."`
}

// ImportImage says how an image of an archive gets its name.
type ImportImage struct {
	Replace bool `query:"replace" doc:"Take the name from an image of the caller's that has it; otherwise that is an error, already_exists."`
}

// Values returns i as the query of a URL.
func (i ImportImage) Values() url.Values {
	if !i.Replace {
		return nil
	}
	return url.Values{"replace": {"true"}}
}

// ParseImportImage is the inverse of Values; an error is an *Error.
func ParseImportImage(v url.Values) (ImportImage, error) {
	q := query{values: v}
	i := ImportImage{Replace: q.flag("replace")}
	return i, q.result()
}

// Values returns r as the query of a URL.
func (r ReadFiles) Values() url.Values {
	return values(r.Path, r.Name, map[string]bool{"follow": r.Follow, "one_file_system": r.OneFileSystem})
}

// Values returns w as the query of a URL.
func (w WriteFiles) Values() url.Values {
	return values(w.Path, w.Name, map[string]bool{"archive": w.Archive})
}

func values(path, name string, flags map[string]bool) url.Values {
	v := url.Values{"path": {path}}
	if name != "" {
		v.Set("name", name)
	}
	for flag, on := range flags {
		if on {
			v.Set(flag, "true")
		}
	}
	return v
}

// ParseReadFiles is the inverse of Values; an error is an *Error.
func ParseReadFiles(v url.Values) (ReadFiles, error) {
	q := query{values: v}
	r := ReadFiles{Path: q.path(), Name: q.name(true), Follow: q.flag("follow"), OneFileSystem: q.flag("one_file_system")}
	return r, q.result()
}

// ParseWriteFiles is the inverse of Values; an error is an *Error.
func ParseWriteFiles(v url.Values) (WriteFiles, error) {
	q := query{values: v}
	w := WriteFiles{Path: q.path(), Name: q.name(false), Archive: q.flag("archive")}
	return w, q.result()
}

// CheckPath says whether p can be a path in a VM; an error is an *Error.
func CheckPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return Errorf(CodeInvalid, "path %.200q: not absolute", p).WithHint("paths in a VM begin with /")
	case len(p) > maxPath:
		return Errorf(CodeInvalid, "path %.200q...: longer than %d bytes", p, maxPath)
	case strings.ContainsRune(p, 0):
		return Errorf(CodeInvalid, "path %.200q: it has a zero byte", p)
	}
	return nil
}

// query reads the parameters of a URL and keeps the first error.
type query struct {
	values url.Values
	err    *Error
}

func (q *query) fail(e *Error) {
	if q.err == nil {
		q.err = e
	}
}

func (q *query) path() string {
	p := q.values.Get("path")
	if err := CheckPath(p); err != nil {
		q.fail(AsError(err))
	}
	return path.Clean(p)
}

// name reads one element of a path; "." is one if dot says so.
func (q *query) name(dot bool) string {
	name := q.values.Get("name")
	if name == ".." || name == "." && !dot || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
		q.fail(Errorf(CodeInvalid, "name %.200q: not the name of a file", name))
	}
	return name
}

func (q *query) flag(key string) bool {
	text := q.values.Get(key)
	if text == "" {
		return false
	}
	on, err := strconv.ParseBool(text)
	if err != nil {
		q.fail(Errorf(CodeInvalid, "%s=%.200q: neither true nor false", key, text))
	}
	return on
}

func (q *query) result() error {
	if q.err == nil {
		return nil
	}
	return q.err
}

// ReadLogs says what of a VM's console is read.
type ReadLogs struct {
	Follow bool `query:"follow" doc:"Go on with what is printed from now on, also after a restart, until the VM is deleted."`
	Tail   *int `query:"tail" doc:"So many of the last lines; all that are kept where it is absent."`
}

// Values returns r as the query of a URL.
func (r ReadLogs) Values() url.Values {
	v := url.Values{}
	if r.Follow {
		v.Set("follow", "true")
	}
	if r.Tail != nil {
		v.Set("tail", strconv.Itoa(*r.Tail))
	}
	return v
}

// ParseReadLogs is the inverse of Values; an error is an *Error.
func ParseReadLogs(v url.Values) (ReadLogs, error) {
	q := query{values: v}
	r := ReadLogs{Follow: q.flag("follow")}
	if text := v.Get("tail"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			q.fail(Errorf(CodeInvalid, "tail=%.200q: not a number of lines", text))
		}
		r.Tail = &n
	}
	return r, q.result()
}
