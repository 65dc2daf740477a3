package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/api"
	"banger/internal/intake"
)

// Export is an image on its way out, as an OCI Image Layout in a tar archive that
// docker load and podman load take too. Close gives back what it holds; the image may
// be removed meanwhile.
type Export struct {
	img    Image
	layers []exported
}

// exported is the archive of a layer.
type exported struct {
	file  *os.File
	desc  v1.Descriptor
	plain bool // whether it is exported uncompressed, and kept otherwise
}

// Export finds an image that the caller may use and opens what it consists of. The
// layers are as they arrived, so that their digests are the same.
func (m *Manager) Export(ctx context.Context, caller uint32, name string) (_ *Export, err error) {
	m.mu.Lock()
	defer m.mu.Unlock() // so that its layers stay until they are open
	img, err := m.Get(ctx, caller, name)
	if err != nil {
		return nil, err
	}
	e := &Export{img: img}
	defer func() {
		if err != nil {
			err = errors.Join(api.About(err, "export image %q", name), e.Close())
		}
	}()
	for _, l := range img.Layers {
		file, err := os.Open(m.path(l.Dir, archiveFile))
		if errors.Is(err, os.ErrNotExist) || err == nil && img.Config == "" {
			err = errors.Join(err, closeFile(file))
			return nil, api.Errorf(api.CodeConflict, "export image %q: it is of an earlier version of banger, which kept no archives: %w", name, err).
				WithHint("remove it and make it again, or banger vm promote a VM of it")
		}
		if err != nil {
			return nil, err
		}
		e.layers = append(e.layers, exported{file: file, desc: v1.Descriptor{Digest: hashOf(l.Blob)}})
	}
	return e, nil
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// hashOf is the digest that a string says, the zero one where it says none.
func hashOf(digest string) v1.Hash {
	h, err := v1.NewHash(digest)
	if err != nil {
		return v1.Hash{}
	}
	return h
}

// Close gives back what e holds.
func (e *Export) Close() error {
	var errs []error
	for _, l := range e.layers {
		errs = append(errs, l.file.Close())
	}
	return errors.Join(errs...)
}

// Write writes the archive; what was written before an error is not whole.
func (e *Export) Write(ctx context.Context, w io.Writer) error {
	out := tar.NewWriter(contextWriter{ctx, w})
	manifest := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: hashOf(digest([]byte(e.img.Config))), Size: int64(len(e.img.Config))},
	}
	for i := range e.layers {
		if err := e.layers[i].describe(ctx); err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, e.layers[i].desc)
	}
	manifestJSON, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	documents, err := e.documents(manifest, manifestJSON)
	if err != nil {
		return err
	}
	for _, d := range documents {
		if err := writeEntry(out, d.name, int64(len(d.text)), strings.NewReader(d.text)); err != nil {
			return err
		}
	}
	seen := map[v1.Hash]bool{}
	for _, l := range e.layers {
		if seen[l.desc.Digest] { // a layer may be there twice
			continue
		}
		seen[l.desc.Digest] = true
		r, err := l.open()
		if err != nil {
			return err
		}
		err = writeEntry(out, blobName(l.desc.Digest), l.desc.Size, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return out.Close()
}

type document struct{ name, text string }

// documents are the archive's files that are not layers, in their order.
func (e *Export) documents(manifest v1.Manifest, manifestJSON []byte) ([]document, error) {
	desc := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hashOf(digest(manifestJSON)), Size: int64(len(manifestJSON)), Annotations: map[string]string{}}
	if system, arch := e.img.Platform(); arch != "" {
		desc.Platform = &v1.Platform{OS: system, Architecture: arch}
	}
	saved := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blobName(manifest.Config.Digest), RepoTags: []string{}}
	if tag, err := name.NewTag(e.img.Name); err == nil {
		full := strings.Replace(tag.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
		desc.Annotations["io.containerd.image.name"] = full
		desc.Annotations["org.opencontainers.image.ref.name"] = tag.TagStr()
		saved.RepoTags = append(saved.RepoTags, strings.TrimPrefix(full, "docker.io/library/"))
	}
	for _, l := range manifest.Layers {
		saved.Layers = append(saved.Layers, blobName(l.Digest))
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{desc}})
	if err != nil {
		return nil, err
	}
	docker, err := json.Marshal([]any{saved})
	if err != nil {
		return nil, err
	}
	return []document{
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`},
		{"index.json", string(index)},
		{"manifest.json", string(docker)}, // for docker load of old
		{blobName(desc.Digest), string(manifestJSON)},
		{blobName(manifest.Config.Digest), e.img.Config},
	}, nil
}

// writeEntry writes a file of the archive, always the same for the same content.
func writeEntry(out *tar.Writer, name string, size int64, r io.Reader) error {
	err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(name), Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
	if err == nil {
		_, err = io.CopyN(out, r, size)
	}
	return err
}

// describe finds out what the registry would know the archive by.
func (l *exported) describe(ctx context.Context) error {
	head := make([]byte, 6)
	n, err := l.file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	format := intake.FormatOf(head[:n])
	// There is no media type for xz. And what arrived uncompressed is kept with zstd, which
	// old programs do not know.
	l.plain = format == intake.XZ || format == intake.Zstd && l.desc.Digest.Hex == ""
	l.desc.MediaType = types.OCIUncompressedLayer
	switch {
	case format == intake.Gzip:
		l.desc.MediaType = types.OCILayer
	case format == intake.Zstd && !l.plain:
		l.desc.MediaType = types.OCILayerZStd
	}
	if !l.plain && l.desc.Digest.Hex != "" {
		info, err := l.file.Stat()
		if err == nil {
			l.desc.Size = info.Size()
		}
		return err
	}
	r, err := l.open()
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	if l.desc.Size, err = io.Copy(contextWriter{ctx, sum}, r); err != nil {
		return err
	}
	l.desc.Digest = hashOf("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	return nil
}

// open reads the archive as it is exported.
func (l *exported) open() (io.ReadCloser, error) {
	whole := io.NewSectionReader(l.file, 0, 1<<62)
	if !l.plain {
		return io.NopCloser(whole), nil
	}
	plain, _, err := intake.Open(whole)
	return plain, err
}

// contextWriter is w until ctx ends.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}
