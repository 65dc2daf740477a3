// Package identity says which installation a state directory is. Its short id is
// part of every name that banger gives to the kernel, so that installations on one
// host never take each other's objects for their own.
package identity

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/resource"

	"github.com/google/renameio/v2"
)

// Identity is the content of installation.json, in the state directory, and of its
// second copy in the run directory, which goes with the host's boot as all does that
// bears the id. A copied directory has another inode than the file says, and so is
// known to be a new installation.
type Identity struct {
	ID     string `json:"id"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

const (
	fileName = "installation.json"
	idBytes  = 4 // that an id has; it is written in hexadecimal digits
)

// wellFormed says whether id can be a part of the kernel's names.
func wellFormed(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == idBytes
}

// Load reads the identity of a state directory, and mints one where there is none
// or where the directory is a copy of another. Minted says so; the ledger's rows
// for volatile objects belong to the original then, and have to be forgotten before
// Keep, so that a crash between the two leaves no copy that takes them for its own.
// For a file that is lost or damaged the second copy in runDir stands, if that is of
// this state directory. Damaged without one is an error: a new id would leave the
// objects of the old one to nobody. Load changes nothing.
func Load(stateDir, runDir string) (id Identity, minted bool, err error) {
	path := filepath.Join(stateDir, fileName)
	device, inode, err := linux.Inode(stateDir)
	if err != nil {
		return Identity{}, false, err
	}
	id, err = read(path)
	damaged := errors.Is(err, errDamaged)
	switch {
	case err == nil && id.Device == device && id.Inode == inode:
		return id, false, nil
	case err != nil && !damaged && !errors.Is(err, fs.ErrNotExist):
		return Identity{}, false, err
	case err != nil:
		second, err := read(filepath.Join(runDir, fileName))
		if err == nil && second.Device == device && second.Inode == inode {
			return second, false, nil
		}
	}
	if damaged {
		return Identity{}, false, api.Errorf(api.CodeInternal, "read %s: %w", path, errDamaged).
			WithHint("put it back from a backup; without one, remove it once no VM of this installation runs")
	}
	return Identity{ID: resource.RandomName(idBytes), Device: device, Inode: inode}, true, nil
}

var errDamaged = errors.New("it is damaged")

func read(path string) (id Identity, err error) {
	text, err := os.ReadFile(path)
	if err == nil && (json.Unmarshal(text, &id) != nil || !wellFormed(id.ID)) {
		err = errDamaged
	}
	return id, err
}

// Keep makes an identity that of its state directory, and keeps the second copy in the
// run directory. A damaged file is set aside. Nothing may have been made in the name of
// a minted one before.
func (id Identity) Keep(stateDir, runDir string) error {
	path := filepath.Join(stateDir, fileName)
	is, err := read(path)
	if errors.Is(err, errDamaged) {
		if _, err := resource.SetAside(path); err != nil {
			return err
		}
	}
	if err != nil || is != id {
		if err := id.save(stateDir); err != nil {
			return err
		}
	}
	return id.save(runDir)
}

func (id Identity) save(dir string) error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, fileName)
	if err := renameio.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	failpoint.Reach("installation", "saved")
	return nil
}
