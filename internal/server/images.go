package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/image"
)

func (s *server) imageRoutes(routes huma.API) {
	route(s, routes, spec{"GET /images", http.StatusOK, "list-images", "List the images that the caller may use.",
		"Their own and root's; root all.", nil},
		func(ctx context.Context, caller uint32, _ *none) ([]api.Image, error) {
			return each(imageOut)(s.Images.List(ctx, caller))
		})
	route(s, routes, spec{"GET /images/{name}", http.StatusOK, "get-image", "Get an image.",
		"The caller's own image of that name, else root's.", []api.Code{api.CodeNotFound}},
		func(ctx context.Context, caller uint32, in *nameInput) (api.Image, error) {
			i, err := s.Images.Get(ctx, caller, in.Name)
			return imageOut(i), err
		})
	route(s, routes, spec{"POST /images/pull", http.StatusAccepted, "pull-image", "Get an image from a registry.",
		"The image is the caller's, under the name by which it was asked for; an image that had the name loses it. The result of the operation is that name.", []api.Code{api.CodeInvalid}},
		func(_ context.Context, caller uint32, in *struct{ Body api.PullImage }) (operationBody, error) {
			op := s.Operations.Make(caller, "image.pull", in.Body.Ref, func(ctx context.Context, report api.Reporter) (string, error) {
				i, err := s.Images.Pull(ctx, caller, in.Body, report)
				return i.Name, err
			})
			return operationBody{op}, nil
		})
	routeEmpty(s, routes, spec{"DELETE /images/{name}", http.StatusNoContent, "remove-image", "Remove an image that no VM uses.",
		"Layers that no other image has are removed with it.", []api.Code{api.CodeNotFound, api.CodeConflict}},
		func(ctx context.Context, caller uint32, in *nameInput) error {
			return s.Images.Remove(ctx, caller, in.Name)
		})
	route(s, routes, spec{"POST /images/{name}/tag", http.StatusOK, "tag-image", "Give an image another name.",
		"The name is the caller's, whoever has the image; an image of the caller's that had it loses it.", []api.Code{api.CodeInvalid, api.CodeNotFound, api.CodeConflict, api.CodeNoSpace}},
		func(ctx context.Context, caller uint32, in *struct {
			Name string `path:"name"`
			Body api.TagImage
		}) (api.Image, error) {
			i, err := s.Images.Tag(ctx, caller, in.Name, in.Body.Name)
			return imageOut(i), err
		})
	route(s, routes, spec{"GET /images/{name}/history", http.StatusOK, "image-history", "Say how an image came about.",
		"Oldest step first, as its config says.", []api.Code{api.CodeNotFound}},
		func(ctx context.Context, caller uint32, in *nameInput) ([]api.ImageHistory, error) {
			i, err := s.Images.Get(ctx, caller, in.Name)
			return i.History(), err
		})
	route(s, routes, spec{"POST /images/prune", http.StatusOK, "prune-images", "Remove images that no VM needs.",
		"The least recently used come first. What cannot be removed is listed with its error, and the rest is removed all the same. For root, layers that no image has go as well.", []api.Code{api.CodeInvalid}},
		func(ctx context.Context, caller uint32, in *struct{ Body api.PruneImages }) (api.Pruned, error) {
			return s.Usage.PruneImages(ctx, caller, in.Body)
		})
}

// exportImage answers with an archive that is whole, or is broken off.
func (s *server) exportImage(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := streaming(r)
	defer cancel()
	e, err := s.Images.Export(ctx, caller(ctx), r.PathValue("name"))
	if err != nil {
		s.fail(w, err)
		return
	}
	defer e.Close()
	w.Header().Set("Content-Type", tarType)
	rc := http.NewResponseController(w)
	err = e.Write(ctx, writeFunc(func(p []byte) (int, error) {
		if err := rc.SetWriteDeadline(time.Now().Add(uploadPause)); err != nil { // whoever reads may be slow, but has to go on
			return 0, err
		}
		return w.Write(p)
	}))
	if err != nil {
		s.Log.Info("export image", "image", r.PathValue("name"), "err", err)
		panic(http.ErrAbortHandler) // the reader must not take it for the whole
	}
}

func imageOut(i image.Image) api.Image {
	out := api.Image{ID: i.ID, Name: i.Name, Owner: i.Owner, Created: i.Created, Entries: i.Entries, Source: i.Source, Digest: i.Manifest, Layers: []api.Layer{}, Config: i.Run()}
	system, arch := i.Platform()
	out.Platform = system + "/" + arch
	for _, l := range i.Layers {
		out.Layers = append(out.Layers, api.Layer{Digest: l.Digest, Size: l.Size})
		out.Size += l.Size
	}
	if i.Tail != nil {
		out.Size += i.Tail.Size
	}
	return out
}
