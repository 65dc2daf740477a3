package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"regexp"
	"runtime"
	"time"

	"banger/api"
)

// Limits of what a manifest may ask for.
const (
	maxLayers = 500
	maxConfig = 4 << 20 // bytes
)

// Artifact is an OCI image that arrives, from a registry or an archive: a config and
// the blobs of its layers, lowest first.
type Artifact struct {
	Config   []byte // its JSON; the sender has compared it with its digest
	Manifest string // digest of the manifest, "" where there is none
	Source   string // where it came from, for people
	Layers   []Blob
}

// Blob is the archive of a layer, compressed or not.
type Blob struct {
	Digest string // sha256:..., of the blob as it arrives; "" where only the DiffID is known
	Size   int64  // bytes; -1 where it is not known
	// Open begins to read it, at the byte from. What it delivers is compared with the
	// digest here.
	Open func(ctx context.Context, from int64) (io.ReadCloser, error)
	// Offered tells whether who has it would give it to the caller; nil where only its
	// content tells.
	Offered func(context.Context) error
}

var validDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// chainIDs checks an artifact and returns the identities of its layers: of each with
// all those below it. See the OCI Image Configuration, "Layer ChainID".
func (a Artifact) chainIDs() (diffs, chains []string, err error) {
	bad := func(format string, args ...any) ([]string, []string, error) {
		return nil, nil, api.Errorf(api.CodeInvalid, "image config: "+format, args...)
	}
	c, err := parseConfig(a.Config)
	if err == nil {
		_, err = c.run()
	}
	if err != nil {
		return nil, nil, err
	}
	switch {
	case c.OS != "" && c.OS != "linux":
		return bad("the image is for %s", quote(c.OS))
	case len(c.RootFS.DiffIDs) != len(a.Layers):
		return bad("it names %d layers, the manifest %d", len(c.RootFS.DiffIDs), len(a.Layers))
	case len(a.Layers) == 0:
		return bad("the image has no layers")
	case len(a.Layers) > maxLayers:
		return bad("the image has %d layers, the most are %d", len(a.Layers), maxLayers)
	}
	for i, diff := range c.RootFS.DiffIDs {
		if !validDigest.MatchString(diff) {
			return bad("%s is not a digest", quote(diff))
		}
		chain := diff
		if i > 0 {
			chain = digest([]byte(chains[i-1] + " " + diff))
		}
		chains = append(chains, chain)
	}
	return c.RootFS.DiffIDs, chains, nil
}

// plainConfig is that of an image of one archive, which came with none.
func plainConfig(diff string) imageConfig {
	c := imageConfig{Architecture: runtime.GOARCH, OS: "linux"}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{diff}
	c.History = []historyLine{{Created: &time.Time{}, CreatedBy: "banger image import"}} // builders refuse a layer without one
	return c
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
