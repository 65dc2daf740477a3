package agent

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
	"banger/internal/archive"
	"banger/internal/guest/wire"
	"banger/internal/linux"
)

const (
	// borrowedDir holds the host's rsync, and borrowedBin, at the end of a PATH, this
	// program under that name, which runs it.
	borrowedDir = "/run/banger/rsync"
	borrowedBin = "/run/banger/bin"
	roleRsync   = wire.ProgramRsync

	lenderPatience = 5 * time.Second  // until a host takes a want up
	loanPatience   = 60 * time.Second // until it has sent the program
)

// borrower gets the host's rsync where the image has none, so that rsync's client finds
// one at this end too: the host has one, or it could not ask for this.
type borrower struct {
	has  func() bool           // it is there
	take func(io.Reader) error // what a host sends

	mu      sync.Mutex    // held by the one session that borrows
	wants   chan struct{} // taken by a host that listens
	arrived chan error    // how a loan ended
}

func newBorrower() *borrower {
	program := filepath.Join(borrowedBin, roleRsync)
	return &borrower{
		has: func() bool { return linked(program) },
		take: func(r io.Reader) error {
			if err := unpackLoan(borrowedDir, r); err != nil {
				return err
			}
			return linkProgram(program)
		},
		wants: make(chan struct{}), arrived: make(chan error, 1),
	}
}

// serveWants is GET /wants: see wire.Want.
func (b *borrower) serveWants(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	for w.WriteHeader(http.StatusOK); rc.Flush() == nil; {
		select {
		case <-b.wants:
			if json.NewEncoder(w).Encode(wire.Want{Program: wire.ProgramRsync}) != nil {
				return // the host is gone
			}
		case <-r.Context().Done():
			return
		}
	}
}

// serveLent is PUT /lent: what was asked for, or why there is none.
func (b *borrower) serveLent(w http.ResponseWriter, r *http.Request) {
	var err error
	if r.Header.Get("Content-Type") == "application/json" {
		var e wire.Error
		if err = json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&e); err == nil {
			err = &unlent{e.Message}
		}
	} else {
		err = b.take(r.Body)
	}
	select {
	case b.arrived <- err:
	default: // nobody waits any more
	}
	if _, said := err.(*unlent); err != nil && !said {
		w.Header().Set("Connection", "close") // the body has not been read
		refuse(w, archive.Coded("take "+roleRsync, err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// unlent is the host's word for why it does not lend.
type unlent struct{ why string }

func (u *unlent) Error() string { return "the host does not lend its own: " + u.why }

// unpackLoan makes dir what the archive r holds, wholly or not at all.
func unpackLoan(dir string, r io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	part, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	root, err := os.OpenRoot(part)
	if err != nil {
		return err
	}
	err = archive.Extract(root, bufio.NewReaderSize(r, filesBuffer), archive.ExtractOptions{})
	if err := errors.Join(err, root.Close()); err != nil {
		return err
	}
	if err := os.Chmod(part, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// linkProgram makes this program appear at path, for every user to run. A link into
// /proc, as modprobe is, would do for root only.
func linkProgram(path string) error {
	if linked(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		return err
	}
	return linux.Bind("/proc/self/exe", path)
}

// linked says whether a program is at path, and not only the file that it is bound to.
func linked(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Size() > 0
}

// borrow returns when the host's rsync is there.
func (b *borrower) borrow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.has() {
		return nil
	}
	fail := func(err error) error {
		return fmt.Errorf("rsync is not in this image, and %w: %w", err, fs.ErrNotExist)
	}
	select {
	case <-b.arrived: // of a session that gave up
	default:
	}
	select {
	case b.wants <- struct{}{}:
	case <-time.After(lenderPatience):
		return fail(errors.New("no host lends its own over this connection: connect as banger vm ssh-config has it"))
	}
	select {
	case err := <-b.arrived:
		if err != nil {
			log.Printf("borrow %s: %v", roleRsync, err)
			return fail(err)
		}
		return nil
	case <-time.After(loanPatience):
		return fail(fmt.Errorf("the host did not lend its own within %v", loanPatience))
	}
}

// callsRsync says whether a command line runs rsync as the other end of one elsewhere.
func callsRsync(line string) bool {
	return strings.Contains(line, roleRsync) && strings.Contains(line, "--server")
}

// withRsync completes what a command line is run with: it finds an rsync, the image's
// own or the host's.
func (b *borrower) withRsync(spec api.ExecSpec, line string) (api.ExecSpec, error) {
	if !callsRsync(line) {
		return spec, nil
	}
	list := cmp.Or(pathOf(spec.Env), defaultPath)
	if _, err := lookPath(roleRsync, "/", []string{"PATH=" + list}); err == nil {
		return spec, nil
	}
	if err := b.borrow(); err != nil {
		return spec, err
	}
	spec.Env = append(spec.Env, "PATH="+list+":"+borrowedBin)
	return spec, nil
}

// runBorrowed becomes the rsync that was borrowed.
func runBorrowed(args []string) error {
	program, loader := filepath.Join(borrowedDir, wire.LentProgram), filepath.Join(borrowedDir, wire.LentLoader)
	argv := append([]string{roleRsync}, args...)
	if _, err := os.Stat(loader); err == nil {
		argv = append([]string{loader, "--library-path", filepath.Join(borrowedDir, wire.LentLibraries), program}, args...)
		program = loader
	}
	return &fs.PathError{Op: "run", Path: program, Err: syscall.Exec(program, argv, os.Environ())}
}
