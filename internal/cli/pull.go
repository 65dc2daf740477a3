package cli

import (
	"context"
	"runtime"
	"strings"

	"banger/api"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
)

// pullCommand is banger image pull.
func (d *deps) pullCommand() *cobra.Command {
	var platform string
	c := command(d, "pull REFERENCE", "Get an image from an OCI or Docker registry",
		"banger image pull python:3", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			system, arch, _ := strings.Cut(platform, "/")
			if system != "linux" || arch == "" {
				return api.Errorf(api.CodeInvalid, "--platform %q: not a platform of VMs", platform).WithHint("it is like linux/%s", runtime.GOARCH)
			}
			image, err := d.pullImage(ctx, args[0], arch)
			return d.madeImage(image, err, nil)
		})
	c.Flags().StringVar(&platform, "platform", "linux/"+runtime.GOARCH, "`platform` that the image is to be for")
	completeFlag(c, "platform", cobra.FixedCompletions([]string{"linux/amd64", "linux/arm64"}, cobra.ShellCompDirectiveNoFileComp))
	c.ValidArgsFunction = first(d.images)
	d.withJSON(c)
	d.withQuiet(c, "show no progress, and of the image the name only")
	return c
}

// pullImage gets an image from its registry, as whoever the user has logged in as.
func (d *deps) pullImage(ctx context.Context, ref, arch string) (api.Image, error) {
	auth, err := registryAuth(ctx, ref)
	if err != nil {
		return api.Image{}, err
	}
	asking, answered := outliving(ctx)
	op, err := d.client.PullImage(asking, api.PullImage{Ref: ref, Arch: arch, Auth: auth})
	answered()
	if err != nil {
		return api.Image{}, err
	}
	line := newProgress(d, true)
	defer line.clear()
	op, err = d.wait(ctx, op, line.report)
	if err != nil {
		return api.Image{}, err
	}
	return d.client.Image(context.WithoutCancel(ctx), op.Result)
}

// renew pulls an image that came from a registry once more, for a newer one of its name.
func (d *deps) renew(ctx context.Context, ref string) error {
	i, err := d.client.Image(ctx, ref)
	if ref == "" || api.CodeOf(err) == api.CodeNotFound || err == nil && i.Source == "" {
		return nil // what is missing is got anyway, what was made here is not there
	}
	if err == nil {
		_, err = d.pullImage(ctx, ref, "")
	}
	return err
}

// registryAuth is what the user's docker login or podman login has left for the
// registry of a reference, credential helpers included; nil where there is nothing.
func registryAuth(ctx context.Context, ref string) (*api.RegistryAuth, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "image %q: %w", ref, err).
			WithHint("a reference is like python:3, ghcr.io/owner/name:tag or name@sha256:...")
	}
	host := parsed.Context().Registry
	found, err := authn.Resolve(ctx, authn.DefaultKeychain, host)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "look for the credentials of %s: %w", host, err).WithHint("docker login %s, or podman login", host)
	}
	auth, err := authn.Authorization(ctx, found)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "get the credentials of %s: %w", host, err).WithHint("docker login %s, or podman login", host)
	}
	if *auth == (authn.AuthConfig{}) {
		return nil, nil
	}
	return &api.RegistryAuth{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken}, nil
}
