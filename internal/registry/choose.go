package registry

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/api"
)

// MaxIndexes is how deep indexes may be within each other.
const MaxIndexes = 4

// Choose picks, of an index, the manifest (or the index below) for linux on the machine
// arch, as Go calls it.
func Choose(index []byte, arch string) (v1.Hash, error) {
	parsed, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return v1.Hash{}, api.Errorf(api.CodeInvalid, "index of images: %w", err)
	}
	var fit []v1.Hash
	var names []string
	for _, d := range parsed.Manifests {
		p := d.Platform
		attests := p != nil && p.OS == "unknown" || d.Annotations["vnd.docker.reference.type"] != ""
		image := d.MediaType.IsIndex() || d.MediaType.IsImage() || d.MediaType == ""
		if !image || attests {
			continue
		}
		names = append(names, cmp.Or(d.Annotations["org.opencontainers.image.ref.name"], d.Digest.String()))
		if p == nil || p.Architecture == "" || p.OS == "linux" && p.Architecture == arch {
			fit = append(fit, d.Digest)
		}
	}
	if len(fit) > 1 && slices.ContainsFunc(parsed.Manifests, func(d v1.Descriptor) bool { return d.Platform != nil && d.Platform.Variant != "" }) {
		fit = fit[:1] // variants of one architecture: the first is the most general
	}
	fit = slices.Compact(fit)
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(names) == 0:
		return v1.Hash{}, api.Errorf(api.CodeInvalid, "there is no image in it")
	case len(fit) == 0:
		return v1.Hash{}, api.Errorf(api.CodeUnsupported, "the image is not for linux/%s", arch).WithHint("ask for one of this platform")
	}
	list := strings.Join(names[:min(len(names), 10)], ", ")
	return v1.Hash{}, api.Errorf(api.CodeInvalid, "there are %d images in it: %s", len(fit), strconv.Quote(list)).WithHint("save one image at a time")
}
