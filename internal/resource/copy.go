package resource

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/failpoint"
)

// A second copy is a small file beside an object that repeats what the database says
// of it, so that either can be lost. It is a JSON object whose member "schema" is the
// version of what it says.

// maxCopy is the most that a second copy may hold, in bytes.
const maxCopy = 4 << 20

// asideInfix is in the name of everything that was set aside.
const asideInfix = ".lost-"

// Errors of ReadCopy.
var (
	// ErrDamaged: it is not a second copy, or not a whole one.
	ErrDamaged = errors.New("it is damaged")
	// ErrNewer: a newer banger wrote it, in a way that this one does not know.
	ErrNewer = errors.New("a newer banger wrote it")
)

// WriteCopy writes a second copy, atomically. V is a struct with a member "schema".
// Nobody else may write the same copy meanwhile.
func WriteCopy(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = replace(path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// replace has a file have a content or what it had before. What a crash leaves of the
// attempt is under one name, that the next one takes.
func replace(path string, content []byte) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = failpoint.Pass("copy", "begun")
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return failpoint.Pass("copy", "written")
}

// ReadCopy reads the second copy at path into v. Newest is the newest schema that the
// caller knows; what an older one lacks stays as it is in v. Errors: fs.ErrNotExist,
// ErrDamaged, ErrNewer, and those of reading files.
func ReadCopy(path string, newest int, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCopy+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	var version struct{ Schema int }
	switch err := json.Unmarshal(text, &version); {
	case len(text) > maxCopy:
		return fmt.Errorf("read %s: %w: more than %d bytes", path, ErrDamaged, maxCopy)
	case err != nil:
		return fmt.Errorf("read %s: %w: %w", path, ErrDamaged, err)
	case version.Schema < 1:
		return fmt.Errorf("read %s: %w: it does not say which schema it has", path, ErrDamaged)
	case version.Schema > newest:
		return fmt.Errorf("read %s: %w: schema %d, this one knows %d", path, ErrNewer, version.Schema, newest)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("read %s: %w: %w", path, ErrDamaged, err)
	}
	return nil
}

// SetAside renames a file or directory that cannot be used, so that nothing overwrites
// it and people can look at it, and returns its new path.
func SetAside(path string) (aside string, err error) {
	base := path + asideInfix + time.Now().UTC().Format("20060102T150405")
	aside = base
	for i := 2; ; i++ { // the clock may have been here before
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", fmt.Errorf("set %s aside: %w", path, err)
		}
		aside = fmt.Sprintf("%s-%d", base, i)
	}
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set %s aside: %w", path, err)
	}
	return aside, nil
}

// IsAside says whether name, of a file or directory, was given by SetAside.
func IsAside(name string) bool { return strings.Contains(name, asideInfix) }

// KeepCopy is WriteCopy where the file does not say the same already. One that is
// damaged is set aside first.
func KeepCopy(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	is, err := os.ReadFile(path)
	if err == nil && string(is) == string(text)+"\n" {
		return nil
	}
	var version struct{ Schema int }
	if err == nil && (json.Unmarshal(is, &version) != nil || version.Schema < 1) {
		if _, err := SetAside(path); err != nil {
			return err
		}
	}
	return WriteCopy(path, v)
}

// RemoveCopy removes a second copy, and what a crash has left of one; nil where there
// is none.
func RemoveCopy(path string) error {
	for _, p := range []string{path + ".part", path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Aside returns the files and directories of a state directory that were set aside.
func Aside(stateDir string) ([]string, error) {
	var all []string
	for _, pattern := range []string{"lost-*", "*" + asideInfix + "*", "*/*" + asideInfix + "*", "*/*/*" + asideInfix + "*"} {
		found, err := filepath.Glob(filepath.Join(stateDir, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			if name, _ := filepath.Rel(stateDir, path); pattern == "lost-*" || !strings.HasPrefix(name, "lost-") {
				all = append(all, path)
			}
		}
	}
	return all, nil
}
