package image

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"

	"banger/api"
	"banger/internal/registry"
)

// Pull makes what a reference means in a registry the image of that name, unless it is
// that already; an image that had the name loses it. Several pulls of one layer are one.
// Errors are those of registry.Client.Fetch and of Add.
func (m *Manager) Pull(ctx context.Context, owner uint32, req api.PullImage, report api.Reporter) (Image, error) {
	name, err := registry.Familiar(req.Ref)
	if err != nil {
		return Image{}, err
	}
	if report == nil {
		report = func(api.Progress) {}
	}
	report(api.Progress{Step: "look up " + name})
	var auth authn.AuthConfig
	if a := req.Auth; a != nil {
		auth = authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	}
	found, err := m.Registries.Fetch(ctx, req.Ref, req.Arch, auth)
	if err != nil {
		return Image{}, err
	}
	all, err := m.Store.Images(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("list images: %w", err)
	}
	id := digest(found.Config)
	if i := slices.IndexFunc(all, func(i Image) bool { return i.Owner == owner && i.Name == name && i.ID == id }); i >= 0 {
		return all[i], nil
	}
	art := Artifact{Config: found.Config, Manifest: found.Manifest, Source: found.From}
	for _, l := range found.Layers {
		art.Layers = append(art.Layers, Blob{Digest: l.Digest, Size: l.Size, Open: l.Open, Offered: l.Offered})
	}
	return m.Add(ctx, owner, name, true, art, report)
}
