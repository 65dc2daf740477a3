// Package registry fetches images from OCI and Docker registries: the manifest for
// this machine, the config, and streams of the layers. Registries are strangers: what
// they send is bounded in size and time and compared with its digest, they lead
// nowhere that the caller did not name, and a stream that breaks goes on where it
// broke. See the OCI Distribution Specification.
package registry

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/api"
)

// maxDocument bounds manifests, indexes and configs, in bytes.
const maxDocument = 4 << 20

// Config is what is known of registries beforehand.
type Config struct {
	Mirrors  map[string][]string // by host as in docker.io: those to ask first, in order
	Insecure []string            // hosts that may be spoken to without TLS; loopback always may
	Patience Patience
}

// Image is an image that a registry offers.
type Image struct {
	Manifest string // digest, sha256:...
	Config   []byte
	Layers   []Layer
	From     string // the repository, with the registry that answered
}

// Layer is the blob of a layer.
type Layer struct {
	Digest string
	Size   int64
	// Open begins to read it, at the byte from. A stream that breaks is taken up again.
	Open func(ctx context.Context, from int64) (io.ReadCloser, error)
	// Offered asks whether the registry would give it to the caller.
	Offered func(context.Context) error
}

// Client speaks to registries. The zero Client knows of no mirrors.
type Client struct{ Config }

// Familiar is the name that an image of a reference has here: without what goes
// without saying, such as docker.io/library/ and :latest. It is an error, invalid, if
// ref is no reference.
func Familiar(ref string) (string, error) {
	parsed, err := parse(ref)
	if err != nil {
		return "", err
	}
	repo := parsed.Context()
	short := repo.Name()
	if repo.RegistryStr() == name.DefaultRegistry {
		short = strings.TrimPrefix(repo.RepositoryStr(), "library/")
	}
	switch id := parsed.Identifier(); {
	case strings.HasPrefix(id, "sha256:"):
		return short + "@" + id, nil
	case id == name.DefaultTag:
		return short, nil
	default:
		return short + ":" + id, nil
	}
}

func parse(ref string, opts ...name.Option) (name.Reference, error) {
	// One of tag and digest: with both, the digest says what it is.
	if at := strings.LastIndex(ref, "@"); at > 0 {
		if tag, err := name.NewTag(ref[:at], opts...); err == nil {
			ref = tag.Context().Name() + ref[at:]
		}
	}
	parsed, err := name.ParseReference(ref, opts...)
	if err == nil && strings.HasPrefix(ref, ".") {
		err = errors.New("a name does not begin with a dot")
	}
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "image %q: %w", ref, err).WithHint("a reference is like python:3, ghcr.io/owner/name:tag or name@sha256:...")
	}
	return parsed, nil
}

// Host is the registry of a reference, as credentials are kept for it.
func Host(ref string) (string, error) {
	parsed, err := parse(ref)
	if err != nil {
		return "", err
	}
	return parsed.Context().RegistryStr(), nil
}

// Fetch finds out what a reference means: the image for linux on the machine arch,
// that of this one where it is empty. Mirrors are asked first, without the credentials.
// Errors: invalid, not_found, permission_denied, unsupported where the image is not for
// that machine, unavailable.
func (c *Client) Fetch(ctx context.Context, ref, arch string, auth authn.AuthConfig) (Image, error) {
	parsed, err := parse(ref)
	if err != nil {
		return Image{}, err
	}
	repo := parsed.Context()
	host := repo.RegistryStr()
	if host == name.DefaultRegistry {
		host = "docker.io"
	}
	var tried []string
	for _, mirror := range c.Mirrors[host] {
		img, err := c.fetch(ctx, mirror, repo.RepositoryStr(), parsed.Identifier(), arch, authn.AuthConfig{})
		if err == nil {
			return img, nil
		}
		if ctx.Err() != nil {
			return Image{}, err
		}
		tried = append(tried, fmt.Sprintf("mirror %s: %v", mirror, err))
	}
	img, err := c.fetch(ctx, repo.RegistryStr(), repo.RepositoryStr(), parsed.Identifier(), arch, auth)
	if err != nil && len(tried) > 0 {
		e := *api.AsError(err)
		e.Message += " (" + strings.Join(tried, "; ") + ")"
		return Image{}, &e
	}
	return img, err
}

func (c *Client) fetch(ctx context.Context, host, repository, id, arch string, auth authn.AuthConfig) (Image, error) {
	var opts []name.Option
	guard := newGuard(host, slices.Contains(c.Insecure, host), c.Patience)
	if guard.plain {
		opts = append(opts, name.Insecure)
	}
	registry, err := name.NewRegistry(host, opts...)
	if err != nil {
		return Image{}, api.Errorf(api.CodeInvalid, "registry %q: %w", host, err)
	}
	repo := registry.Repo(repository)
	rt, err := transport.NewWithContext(ctx, registry, authn.FromConfig(auth), guard, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return Image{}, explain(repo.Name(), err)
	}
	r := &remote{repo: repo, client: &http.Client{Transport: rt, CheckRedirect: guard.redirect}, pause: guard.patience.Pause}
	return r.image(ctx, id, cmp.Or(arch, runtime.GOARCH))
}

// remote is a repository that has let us in.
type remote struct {
	repo   name.Repository
	client *http.Client
	pause  time.Duration // Patience.Pause
}

func (r *remote) image(ctx context.Context, id, arch string) (Image, error) {
	data, h, err := r.manifest(ctx, id)
	for depth := 0; err == nil && isIndex(data); depth++ {
		var chosen v1.Hash
		if depth == MaxIndexes {
			return Image{}, api.Errorf(api.CodeInvalid, "%s: indexes of images within each other, more than %d deep", r.repo, MaxIndexes)
		}
		if chosen, err = Choose(data, arch); err == nil {
			data, h, err = r.manifest(ctx, chosen.String())
		}
	}
	if err != nil {
		return Image{}, err
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil || manifest.Config.Digest.Hex == "" {
		return Image{}, api.Errorf(api.CodeInvalid, "%s: the manifest %s is none of an image", r.repo, h).WithHint("images of the first version of Docker's format are to be pushed anew")
	}
	img := Image{Manifest: h, From: r.repo.Name()}
	if img.Config, err = r.document(ctx, "blobs", manifest.Config.Digest.String()); err != nil {
		return Image{}, err
	}
	for _, l := range manifest.Layers {
		digest := l.Digest.String()
		if l.Digest.Algorithm != "sha256" || l.Size < 0 {
			return Image{}, api.Errorf(api.CodeInvalid, "%s: layer %q of %d bytes", r.repo, digest, l.Size)
		}
		img.Layers = append(img.Layers, Layer{Digest: digest, Size: l.Size, Open: func(ctx context.Context, from int64) (io.ReadCloser, error) {
			return r.open(ctx, digest, l.Size, from)
		}, Offered: func(ctx context.Context) error {
			resp, err := r.ask(ctx, http.MethodHead, "blobs", digest, "")
			if err == nil {
				resp.Body.Close()
			}
			return err
		}})
	}
	return img, nil
}

// manifest gets a manifest or an index by tag or digest.
func (r *remote) manifest(ctx context.Context, id string) (data []byte, digest string, err error) {
	data, err = r.document(ctx, "manifests", id)
	return data, digestOf(data), err
}

func isIndex(data []byte) bool {
	parsed, err := v1.ParseIndexManifest(bytes.NewReader(data))
	return err == nil && (parsed.MediaType.IsIndex() || parsed.MediaType == "" && len(parsed.Manifests) > 0)
}

// document gets a JSON document, which is compared with its digest where that is how it
// is named.
func (r *remote) document(ctx context.Context, kind, id string) ([]byte, error) {
	resp, err := r.ask(ctx, http.MethodGet, kind, id, "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, explain(r.repo.Name(), err)
	case len(data) > maxDocument:
		return nil, api.Errorf(api.CodeInvalid, "%s: %s has more than %d bytes", r.repo, id, maxDocument)
	case strings.HasPrefix(id, "sha256:") && digestOf(data) != id:
		return nil, api.Errorf(api.CodeInvalid, "%s: what it sent for %s has the digest %s", r.repo, id, digestOf(data))
	}
	return data, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// path is where the registry has a manifest or a blob.
func (r *remote) path(kind, id string) string {
	return fmt.Sprintf("/v2/%s/%s/%s", r.repo.RepositoryStr(), kind, id)
}

// ask asks for a manifest or a blob, or for a range of its bytes.
func (r *remote) ask(ctx context.Context, method, kind, id, span string) (*http.Response, error) {
	url := r.repo.Scheme() + "://" + r.repo.RegistryStr() + r.path(kind, id)
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	if kind == "manifests" {
		for _, t := range []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex, types.DockerManifestList} {
			req.Header.Add("Accept", string(t))
		}
	}
	if span != "" {
		req.Header.Set("Range", span)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, explain(r.repo.Name(), err)
	}
	if span != "" && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		resp.Body.Close()
		return r.ask(ctx, method, kind, id, "")
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, explain(r.repo.Name()+": "+id, err)
	}
	return resp, nil
}

// explain gives what went wrong with a registry its code.
func explain(what string, err error) error {
	if known, ok := errors.AsType[*api.Error](err); ok {
		if strings.HasPrefix(known.Message, "pull "+what) {
			return err
		}
		return api.Errorf(known.Code, "pull %s: %s", what, known.Message).WithHint("%s", known.Hint)
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if refused, ok := errors.AsType[*transport.Error](err); ok {
		host, _, _ := strings.Cut(what, "/")
		switch refused.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return api.Errorf(api.CodePermissionDenied, "pull %s: the registry refuses it: %s", what, said(refused)).
				WithHint("it may not exist, or need docker login %s (or podman login) first", host)
		case http.StatusNotFound:
			return api.Errorf(api.CodeNotFound, "pull %s: the registry does not have it", what).WithHint("check name and tag")
		case http.StatusTooManyRequests:
			return api.Errorf(api.CodeUnavailable, "pull %s: the registry has had too many requests", what).
				WithHint("wait, log in with docker login %s, or name a mirror in the configuration (image.mirrors)", host)
		}
		return api.Errorf(api.CodeUnavailable, "pull %s: the registry answered %d: %s", what, refused.StatusCode, said(refused))
	}
	return api.Errorf(api.CodeUnavailable, "pull %s: %w", what, plain{err}).WithHint(tryAgain)
}

const tryAgain = "try again; check the network and the name of the registry"

// said is what a registry gave as its reason, in one short line.
func said(e *transport.Error) string {
	var text []string
	for _, d := range e.Errors {
		text = append(text, d.Message)
	}
	return cmp.Or(short(strings.Join(text, "; "), 200), http.StatusText(e.StatusCode))
}

// plain is an error that says what it says in one line, for a registry may have had a
// say in it.
type plain struct{ error }

func (p plain) Error() string { return short(p.error.Error(), 1000) }
func (p plain) Unwrap() error { return p.error }

// short is a text of strangers as one line of so many bytes at most.
func short(text string, most int) string {
	line := strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool { return !unicode.IsGraphic(r) }), " ")
	if len(line) > most {
		line = strings.ToValidUTF8(line[:most], "") + "..."
	}
	return line
}
