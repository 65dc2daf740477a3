package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"banger/internal/linux"
)

// snapshotFile is the name, in the directory of a snapshot, of the file that says what
// it is of. It is written last: where it is missing there is no snapshot.
const snapshotFile = "snapshot.json"

// Snapshot says of what machine a snapshot is, on what host it was taken, and what
// belongs to it. One may be restored only where all of it is the same: a VMM may take
// another state for its own, and a guest another disk for the one that it knows.
type Snapshot struct {
	Driver   string         `json:"driver"`
	Version  string         `json:"version"` // of the VMM
	Accel    string         `json:"accel"`
	CPU      string         `json:"cpu"`      // the host's
	Features []string       `json:"features"` // of the host's CPU, sorted
	CPUs     int            `json:"cpus"`
	Memory   int64          `json:"memory"` // bytes
	Kernel   SnapshotFile   `json:"kernel"`
	MAC      string         `json:"mac,omitempty"` // empty without network
	Disks    []SnapshotFile `json:"disks"`         // in the order of the machine
	Files    []SnapshotFile `json:"files"`         // in the snapshot's own directory
	Taken    time.Time      `json:"taken"`
}

// SnapshotFile is what a file was when a snapshot was taken.
type SnapshotFile struct {
	Name     string    `json:"name"` // with the name of its directory, since that is what is random
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified"`
}

// Describe says what a snapshot of a machine would be of, here and now.
func Describe(e Engine, m Machine) (Snapshot, error) {
	s := Snapshot{Driver: e.Name(), Version: e.Info.Version, Accel: e.Info.Accel, CPUs: m.CPUs, Memory: m.Memory}
	var err error
	if s.CPU, s.Features, err = linux.CPU(); err != nil {
		return s, err
	}
	if s.Kernel, err = describeFile(m.Kernel); err != nil {
		return s, err
	}
	for _, d := range m.Disks {
		path := d.Path
		if d.File != "" {
			path = d.File
		}
		f, err := describeFile(path)
		if err != nil {
			return s, err
		}
		s.Disks = append(s.Disks, f)
	}
	if m.NIC != nil {
		s.MAC = m.NIC.MAC
	}
	return s, nil
}

func describeFile(path string) (SnapshotFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return SnapshotFile{}, err
	}
	name := filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path))
	return SnapshotFile{Name: name, Size: info.Size(), Modified: info.ModTime().UTC()}, nil
}

// Seal completes the snapshot in dir, whose files are durable, with what it is of.
func (s Snapshot) Seal(dir string) error {
	var err error
	if s.Files, err = filesIn(dir); err != nil {
		return err
	}
	s.Taken = time.Now().UTC()
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(dir, snapshotFile), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("seal snapshot: %w", err)
	}
	return linux.SyncFile(dir)
}

func filesIn(dir string) ([]SnapshotFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []SnapshotFile
	for _, e := range entries {
		if e.Name() == snapshotFile {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is no regular file", filepath.Join(dir, e.Name()))
		}
		files = append(files, SnapshotFile{Name: e.Name(), Size: info.Size(), Modified: info.ModTime().UTC()})
	}
	return files, nil
}

// OpenSnapshot reads what the snapshot in dir is of, and finds all of its files as they
// were when it was sealed.
func OpenSnapshot(dir string) (Snapshot, error) {
	var s Snapshot
	text, err := os.ReadFile(filepath.Join(dir, snapshotFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, errors.New("it is missing, or was not completed")
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s is damaged: %w", snapshotFile, err)
	}
	files, err := filesIn(dir)
	if err != nil {
		return s, err
	}
	return s, sameFiles("its file", s.Files, files)
}

// Fits says why a snapshot cannot be restored where now is what one would be of.
func (s Snapshot) Fits(now Snapshot) error {
	for _, f := range []struct{ what, was, is string }{
		{"the VMM", s.Driver, now.Driver},
		{"the version of " + s.Driver, s.Version, now.Version},
		{"the accelerator", s.Accel, now.Accel},
		{"the host's CPU", s.CPU, now.CPU},
		{"the number of CPUs", fmt.Sprint(s.CPUs), fmt.Sprint(now.CPUs)},
		{"the memory", fmt.Sprint(s.Memory), fmt.Sprint(now.Memory)},
		{"the MAC address", s.MAC, now.MAC},
	} {
		if f.was != f.is {
			return fmt.Errorf("%s was %s and is %s", f.what, orNone(f.was), orNone(f.is))
		}
	}
	var gone []string
	for _, name := range s.Features {
		if _, has := slices.BinarySearch(now.Features, name); !has {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		return fmt.Errorf("the host's CPU has these features no more: %s", strings.Join(gone, " "))
	}
	if err := sameFiles("the kernel", []SnapshotFile{s.Kernel}, []SnapshotFile{now.Kernel}); err != nil {
		return err
	}
	return sameFiles("disk", s.Disks, now.Disks)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// sameFiles says which of files that are now is not what it was.
func sameFiles(what string, was, is []SnapshotFile) error {
	if len(was) != len(is) {
		return fmt.Errorf("%s: there were %d and are %d", what, len(was), len(is))
	}
	for i, w := range was {
		switch n := is[i]; {
		case w.Name != n.Name:
			return fmt.Errorf("%s was %s and is %s", what, w.Name, n.Name)
		case w.Size != n.Size:
			return fmt.Errorf("%s %s had %d bytes and has %d", what, w.Name, w.Size, n.Size)
		case !w.Modified.Equal(n.Modified):
			return fmt.Errorf("%s %s was changed at %s", what, w.Name, n.Modified.Format(time.RFC3339))
		}
	}
	return nil
}
