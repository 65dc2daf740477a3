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

// Identity is the content of installation.json. A copied directory has another
// inode than the file says, and so is known to be a new installation.
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
// Save, so that a crash between the two leaves no copy that takes them for its own.
// A damaged file is an error: a new id would leave the objects of the old one to
// nobody.
func Load(stateDir string) (id Identity, minted bool, err error) {
	path := filepath.Join(stateDir, fileName)
	device, inode, err := linux.Inode(stateDir)
	if err != nil {
		return Identity{}, false, err
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, false, err
	}
	if err == nil {
		if json.Unmarshal(text, &id) != nil || !wellFormed(id.ID) {
			return Identity{}, false, api.Errorf(api.CodeInternal, "read %s: it is damaged", path).
				WithHint("put it back from a backup; without one, remove it once no VM of this installation runs")
		}
		if id.Device == device && id.Inode == inode {
			return id, false, nil
		}
	}
	return Identity{ID: resource.RandomName(idBytes), Device: device, Inode: inode}, true, nil
}

// Save makes a minted identity that of its state directory. Nothing may have been made
// in its name before.
func (id Identity) Save(stateDir string) error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	path := filepath.Join(stateDir, fileName)
	if err := renameio.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	failpoint.Reach("installation", "saved")
	return nil
}
