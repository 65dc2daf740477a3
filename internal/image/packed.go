package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/api"
	"banger/internal/intake"
	"banger/internal/registry"
	"banger/internal/resource"
)

// Limits of an archive that has images in it, rather than the files of one.
const (
	maxPackedFiles = 10_000
	maxManifest    = 4 << 20 // bytes of a JSON document
)

// packedNames are the names with which such archives begin: those of an OCI Image
// Layout, and of what docker save and podman save make.
var packedNames = regexp.MustCompile(`^(oci-layout|index\.json|manifest\.json|repositories|blobs(/.*)?|(sha256:)?[0-9a-f]{64}(\.json|\.tar|\.tar\.gz|/.*)?)$`)

// isPacked looks at the beginning of a stream, which it does not consume: whether it
// is an archive of images.
func isPacked(r *bufio.Reader) bool {
	for _, n := range []int{4 << 10, 64 << 10, bufferSize} {
		head, err := r.Peek(n)
		plain, _, oerr := intake.Open(bytes.NewReader(head))
		if oerr == nil {
			name, ok := firstName(plain)
			plain.Close()
			if ok {
				return packedNames.MatchString(name)
			}
		}
		if err != nil {
			return false
		}
	}
	return false
}

// firstName is the name of the first entry of an archive that is not its root.
func firstName(r io.Reader) (string, bool) {
	for in := tar.NewReader(r); ; {
		hdr, err := in.Next()
		if err != nil {
			return "", false
		}
		if name := path.Clean(hdr.Name); name != "." {
			return name, true
		}
	}
}

// packed is an archive of images, unpacked into a directory of numbered files.
type packed struct {
	dir   string
	files map[string]string // paths in dir, by the name in the archive
	links map[string]string
}

// importPacked makes an image of an archive of one.
func (m *Manager) importPacked(ctx context.Context, owner uint32, name string, replace bool, r io.Reader, report api.Reporter) (img Image, err error) {
	dir := "layers/" + resource.RandomName(8)
	if _, err := m.Ledger.Acquire(ctx, layerOwner(dir), dirKind, dir, nil); err != nil {
		return Image{}, err
	}
	defer func() {
		err = errors.Join(err, m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(dir)))
	}()
	p, err := m.unpack(m.Dirs.Path(dir), r, report)
	if err != nil {
		return Image{}, err
	}
	art, err := p.artifact()
	if err != nil {
		return Image{}, err
	}
	return m.add(ctx, owner, name, replace, art, report)
}

// unpack writes the files of the archive into dir.
func (m *Manager) unpack(dir string, r io.Reader, report api.Reporter) (*packed, error) {
	raw := &meter{r: r}
	plain, _, err := intake.Open(raw)
	if err != nil {
		return nil, broken(raw, "", err)
	}
	defer plain.Close()
	p := &packed{dir: dir, files: map[string]string{}, links: map[string]string{}}
	left := m.MaxSize + maxOverhead
	in, buf := tar.NewReader(plain), make([]byte, bufferSize)
	for n := 0; ; n++ {
		hdr, err := in.Next()
		if err == io.EOF {
			return p, nil
		}
		if err != nil {
			return nil, broken(raw, "", err)
		}
		name, err := cleanPath(hdr.Name)
		switch {
		case err != nil:
			return nil, invalid(hdr.Name, err)
		case n == maxPackedFiles:
			return nil, api.Errorf(api.CodeInvalid, "archive of an image has more than %d files", maxPackedFiles)
		case hdr.Typeflag == tar.TypeSymlink: // docker save of its time had one for a layer that is there twice
			p.links[name] = path.Join(path.Dir(name), hdr.Linkname)
		case hdr.Typeflag == tar.TypeLink:
			p.links[name] = path.Clean(hdr.Linkname)
		case hdr.Typeflag != tar.TypeReg:
			continue
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		if left -= hdr.Size; left < 0 {
			return nil, api.Errorf(api.CodeInvalid, "entry %s: archive is too large", quote(hdr.Name))
		}
		report(api.Progress{Step: "unpack", Current: m.MaxSize + maxOverhead - left})
		file := filepath.Join(dir, strconv.Itoa(n))
		content := &meter{r: in}
		if err := m.writeFile(file, content, buf); content.err != nil {
			return nil, broken(raw, "entry "+quote(hdr.Name)+": ", content.err)
		} else if err != nil {
			return nil, fmt.Errorf("entry %s: %w", quote(hdr.Name), err)
		}
		p.files[name] = file
	}
}

// broken says what reading an archive at a place ran into: what arrives may not be one,
// or may not arrive.
func broken(raw *meter, at string, err error) error {
	if raw.err != nil && !errors.Is(raw.err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s%w", at, raw.err)
	}
	return api.Errorf(api.CodeInvalid, "%sarchive is damaged or truncated: %w", at, err)
}

// writeFile makes a file of what r reads, with holes for zeros, as long as there is room.
func (m *Manager) writeFile(name string, r io.Reader, buf []byte) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	out := &sparseWriter{f: file, room: m.Room}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, onlyReader{r}, buf)
	return errors.Join(err, out.finish(), file.Close())
}

// file is the path of what the archive has under a name.
func (p *packed) file(name string) (string, error) {
	name = path.Clean(name)
	for range maxHops {
		if file, ok := p.files[name]; ok {
			return file, nil
		}
		to, ok := p.links[name]
		if !ok {
			break
		}
		name = to
	}
	return "", api.Errorf(api.CodeInvalid, "archive of an image lacks %s", quote(name))
}

// document reads a JSON document of the archive.
func (p *packed) document(name string) ([]byte, error) {
	file, err := p.file(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if len(data) > maxManifest {
		return nil, api.Errorf(api.CodeInvalid, "%s has more than %d bytes", quote(name), maxManifest)
	}
	return data, err
}

func blobName(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// blob reads a JSON document by its digest.
func (p *packed) blob(h v1.Hash) ([]byte, error) {
	data, err := p.document(blobName(h))
	if err == nil && digest(data) != h.String() {
		return nil, api.Errorf(api.CodeInvalid, "blob %s: its content has the digest %s", quote(h.String()), digest(data))
	}
	return data, err
}

func (p *packed) artifact() (Artifact, error) {
	if _, err := p.file("index.json"); err == nil {
		return p.layout()
	}
	return p.saved()
}

// layout reads an OCI Image Layout.
func (p *packed) layout() (Artifact, error) {
	data, err := p.document("index.json")
	if err != nil {
		return Artifact{}, err
	}
	h, err := choose(data, p.blob)
	if err != nil {
		return Artifact{}, err
	}
	data, err = p.blob(h)
	if err != nil {
		return Artifact{}, err
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return Artifact{}, api.Errorf(api.CodeInvalid, "manifest %s: %w", h, err)
	}
	config, err := p.blob(manifest.Config.Digest)
	if err != nil {
		return Artifact{}, err
	}
	art := Artifact{Config: config, Manifest: h.String()}
	for _, l := range manifest.Layers {
		file, err := p.file(blobName(l.Digest))
		if err != nil {
			return Artifact{}, err
		}
		art.Layers = append(art.Layers, fileBlob(file, l.Digest.String(), l.Size))
	}
	return art, nil
}

// choose follows indexes to the one manifest for this host.
func choose(index []byte, blob func(v1.Hash) ([]byte, error)) (v1.Hash, error) {
	for range registry.MaxIndexes {
		h, err := registry.Choose(index, runtime.GOARCH)
		if err != nil {
			return v1.Hash{}, err
		}
		data, err := blob(h)
		if err != nil {
			return v1.Hash{}, err
		}
		if parsed, err := v1.ParseIndexManifest(bytes.NewReader(data)); err != nil || !parsed.MediaType.IsIndex() {
			return h, nil
		}
		index = data
	}
	return v1.Hash{}, api.Errorf(api.CodeInvalid, "indexes of images within each other, more than %d deep", registry.MaxIndexes)
}

// saved reads what docker save of its time and podman save make.
func (p *packed) saved() (Artifact, error) {
	data, err := p.document("manifest.json")
	if err != nil {
		return Artifact{}, err
	}
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &images); err != nil {
		return Artifact{}, api.Errorf(api.CodeInvalid, "manifest.json: %w", err)
	}
	if len(images) != 1 {
		var tags []string
		for _, i := range images {
			tags = append(tags, i.RepoTags...)
		}
		return Artifact{}, api.Errorf(api.CodeInvalid, "there are %d images in it: %s", len(images), quote(strings.Join(tags, ", "))).
			WithHint("save one image at a time")
	}
	config, err := p.document(images[0].Config)
	if err != nil {
		return Artifact{}, err
	}
	art := Artifact{Config: config}
	for _, name := range images[0].Layers {
		file, err := p.file(name)
		if err != nil {
			return Artifact{}, err
		}
		art.Layers = append(art.Layers, fileBlob(file, "", -1))
	}
	return art, nil
}

func fileBlob(file, digest string, size int64) Blob {
	return Blob{Digest: digest, Size: size, Open: func(_ context.Context, from int64) (io.ReadCloser, error) {
		f, err := os.Open(file)
		if err == nil {
			_, err = f.Seek(from, io.SeekStart)
		}
		return f, err
	}}
}
