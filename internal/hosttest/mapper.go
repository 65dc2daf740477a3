package hosttest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"banger/internal/linux"
)

// Mapper plays the kernel's device-mapper, which the host of the tests may lack, for
// package disk. Like the kernel it keeps what a device is made of open, and refuses to
// remove what another device is made of. A device is an empty file of its size.
type Mapper struct {
	dir string

	mu      sync.Mutex
	made    int
	devices map[string]*mapped
	lacks   bool
}

type mapped struct {
	linux.DMDevice
	table []linux.DMTarget
	held  []*os.File
}

// NewMapper returns a Mapper that keeps its files in the directory dir.
func NewMapper(dir string) *Mapper { return &Mapper{dir: dir, devices: map[string]*mapped{}} }

// Lack says whether the kernel is one without device-mapper.
func (m *Mapper) Lack(lacks bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lacks = lacks
}

// Supports implements disk.Mapper.
func (m *Mapper) Supports(...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lacks {
		return fs.ErrNotExist
	}
	return nil
}

// Make implements disk.Mapper.
func (m *Mapper) Make(name, uuid string, _ bool, table []linux.DMTarget) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.devices[name]; there {
		return fmt.Errorf("create device %s: %w", name, syscall.EBUSY)
	}
	m.made++
	d := &mapped{DMDevice: linux.DMDevice{UUID: uuid, Path: filepath.Join(m.dir, fmt.Sprintf("dm-%d", m.made))}}
	if err := d.load(table); err != nil {
		return errors.Join(err, d.close())
	}
	m.devices[name] = d
	return nil
}

// load gives a device a table, and its file the size.
func (d *mapped) load(table []linux.DMTarget) error {
	var held []*os.File
	sectors := int64(0)
	for _, t := range table {
		sectors += t.Sectors
		for word := range strings.FieldsSeq(t.Params) {
			if !filepath.IsAbs(word) {
				continue
			}
			f, err := os.Open(word)
			if err != nil {
				return err
			}
			held = append(held, f)
		}
	}
	if err := errors.Join(d.close(), os.WriteFile(d.Path, nil, 0o600), os.Truncate(d.Path, sectors*linux.SectorSize)); err != nil {
		return err
	}
	d.table, d.held = table, held
	return nil
}

func (d *mapped) close() error {
	var errs []error
	for _, f := range d.held {
		errs = append(errs, f.Close())
	}
	d.held = nil
	return errors.Join(errs...)
}

// Reload implements disk.Mapper.
func (m *Mapper) Reload(name string, _ bool, table []linux.DMTarget) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, there := m.devices[name]
	if !there {
		return fmt.Errorf("load table of device %s: %w", name, syscall.ENXIO)
	}
	return d.load(table)
}

// Remove implements disk.Mapper.
func (m *Mapper) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, there := m.devices[name]
	if !there {
		return nil
	}
	for _, other := range m.devices {
		if slices.ContainsFunc(other.held, func(f *os.File) bool { return f.Name() == d.Path }) {
			return fmt.Errorf("remove device %s: %w", name, syscall.EBUSY)
		}
	}
	delete(m.devices, name)
	return errors.Join(d.close(), os.Remove(d.Path))
}

// Find implements disk.Mapper.
func (m *Mapper) Find(name string) (linux.DMDevice, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, there := m.devices[name]
	if !there {
		return linux.DMDevice{}, fmt.Errorf("find device %s: %w", name, fs.ErrNotExist)
	}
	return d.DMDevice, nil
}

// Status implements disk.Mapper.
func (m *Mapper) Status(name string) (string, error) {
	_, err := m.Find(name)
	return "16/32 16", err
}

// Names implements disk.Mapper.
func (m *Mapper) Names(prefix string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.devices {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Table is what a device is made of, as text.
func (m *Mapper) Table(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	if d := m.devices[name]; d != nil {
		for _, t := range d.table {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%d %s %s", t.Sectors, t.Type, t.Params)))
		}
	}
	return strings.Join(lines, "\n")
}
