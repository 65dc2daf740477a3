// Package agentbin carries the agent, banger's program in the guest, inside the
// daemon: bangerd writes it as /init into each initramfs. `make build` puts it
// in bin/, from where it is embedded; without it this package still builds.
package agentbin

import (
	"embed"
	"errors"
	"io/fs"

	"banger/api"
)

//go:embed all:bin
var files embed.FS

// Binary returns the agent, a static executable for the architecture of this
// program. The error of a build without one has code unavailable.
func Binary() ([]byte, error) {
	agent, err := files.ReadFile("bin/banger-agent")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.CodeUnavailable, "read the embedded agent: this bangerd was built without it").
			WithHint("build with: make build")
	}
	return agent, err
}
