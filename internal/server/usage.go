package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

func (s *server) usageRoutes(routes huma.API) {
	route(s, routes, spec{"GET /system/df", http.StatusOK, "disk-usage", "Measure what takes the disk.",
		"Bytes of the blocks that files really have. The caller's VMs, the images that they may use, and the kernels; for root all there is in the state directory.", nil},
		func(ctx context.Context, caller uint32, _ *none) (api.DiskUsage, error) {
			return s.Usage.DiskUsage(ctx, caller)
		})
	route(s, routes, spec{"POST /system/prune", http.StatusOK, "prune", "Remove what nobody needs.",
		"What cannot be removed is listed with its error, and the rest is removed all the same.", []api.Code{api.CodeInvalid}},
		func(ctx context.Context, caller uint32, in *struct{ Body api.Prune }) (api.Pruned, error) {
			return s.Usage.Prune(ctx, caller, in.Body)
		})
}
