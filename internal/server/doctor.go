package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

func (s *server) doctorRoutes(routes huma.API) {
	route(s, routes, spec{"GET /system/doctor", http.StatusOK, "examine", "Examine the host and the installation.",
		"Nothing is changed. What is of others, and what only root may know, is not said to users.", nil},
		func(ctx context.Context, caller uint32, _ *none) (api.Diagnosis, error) {
			return s.Doctor.Examine(ctx, caller), nil
		})
	route(s, routes, spec{"POST /system/doctor", http.StatusOK, "repair", "Put what is banger's in order, then examine.",
		"What bears the installation's mark and belongs to no VM is given back, and permissions of its directories are set right. Root only.", nil},
		func(ctx context.Context, caller uint32, _ *none) (api.Diagnosis, error) {
			if err := onlyRoot(caller, "repair"); err != nil {
				return api.Diagnosis{}, err
			}
			return s.Doctor.Repair(ctx, caller), nil
		})
}
