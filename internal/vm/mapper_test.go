package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"

	"banger/internal/disk"
	"banger/internal/failpoint"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

// mapping is a call of a disk.Mapper on its way to another process, and its answer on
// the way back. What the kernel has outlives a daemon.
type mapping struct {
	Call, Name, UUID string
	ReadOnly         bool
	Table            []linux.DMTarget

	Err            string
	NotExist, Busy bool
	Device         linux.DMDevice
	Text           string
	Names          []string
}

// serveMapper lets daemons that are processes of their own have the device-mapper of
// their world.
func (s *machineServer) serveMapper(mux *http.ServeMux) {
	mux.HandleFunc("POST /mapper/{world}", func(rw http.ResponseWriter, r *http.Request) {
		var m mapping
		err := json.NewDecoder(r.Body).Decode(&m)
		if err == nil {
			s.mu.Lock()
			mapper := s.mappers[r.PathValue("world")]
			s.mu.Unlock()
			err = m.call(mapper)
		}
		if err != nil {
			m.Err, m.NotExist, m.Busy = err.Error(), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EBUSY)
		}
		_ = json.NewEncoder(rw).Encode(m) // who asked may have died
	})
}

func (m *mapping) call(to *hosttest.Mapper) (err error) {
	switch m.Call {
	case "make":
		return to.Make(m.Name, m.UUID, m.ReadOnly, m.Table)
	case "reload":
		return to.Reload(m.Name, m.ReadOnly, m.Table)
	case "remove":
		return to.Remove(m.Name)
	case "find":
		m.Device, err = to.Find(m.Name)
	case "status":
		m.Text, err = to.Status(m.Name)
	case "names":
		m.Names, err = to.Names(m.Name)
	default:
		err = to.Supports()
	}
	return err
}

// remoteMapper implements disk.Mapper over a machineServer.
type remoteMapper struct{ driver remoteDriver }

var _ disk.Mapper = remoteMapper{}

// do makes a call, and passes the failpoint after one that has changed something.
func (r remoteMapper) do(m mapping) (mapping, error) {
	if err := r.driver.ask(context.Background(), "mapper/"+r.driver.installed, m, &m); err != nil {
		return m, err
	}
	switch {
	case m.NotExist:
		return m, fmt.Errorf("%s device %s: %w", m.Call, m.Name, fs.ErrNotExist)
	case m.Busy:
		return m, fmt.Errorf("%s device %s: %w", m.Call, m.Name, syscall.EBUSY)
	case m.Err != "":
		return m, errors.New(m.Err)
	case m.Call == "make", m.Call == "reload", m.Call == "remove":
		return m, failpoint.Pass("dm", m.Call)
	}
	return m, nil
}

func (r remoteMapper) Supports(...string) error {
	_, err := r.do(mapping{})
	return err
}

func (r remoteMapper) Make(name, uuid string, readOnly bool, table []linux.DMTarget) error {
	_, err := r.do(mapping{Call: "make", Name: name, UUID: uuid, ReadOnly: readOnly, Table: table})
	return err
}

func (r remoteMapper) Reload(name string, readOnly bool, table []linux.DMTarget) error {
	_, err := r.do(mapping{Call: "reload", Name: name, ReadOnly: readOnly, Table: table})
	return err
}

func (r remoteMapper) Remove(name string) error {
	_, err := r.do(mapping{Call: "remove", Name: name})
	return err
}

func (r remoteMapper) Find(name string) (linux.DMDevice, error) {
	m, err := r.do(mapping{Call: "find", Name: name})
	return m.Device, err
}

func (r remoteMapper) Status(name string) (string, error) {
	m, err := r.do(mapping{Call: "status", Name: name})
	return m.Text, err
}

func (r remoteMapper) Names(prefix string) ([]string, error) {
	m, err := r.do(mapping{Call: "names", Name: prefix})
	return m.Names, err
}
