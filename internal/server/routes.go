package server

import (
	"context"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/image"
	"banger/internal/kernel"
)

// maxStopTimeout bounds what a caller may give a guest to power off.
const maxStopTimeout = 24 * time.Hour

type none struct{}

type answer[T any] struct{ Body T }

type operationBody struct {
	Operation api.Operation `json:"operation"`
}

type createdBody struct {
	VM        api.VM        `json:"vm"`
	Operation api.Operation `json:"operation"`
}

type vmInput struct {
	VM string `path:"vm" doc:"Name, id, or the beginning of the id."`
}

type nameInput struct {
	Name string `path:"name"`
}

type idInput struct {
	ID string `path:"id"`
}

// route registers a JSON route that is answered with status and f's result.
func route[I, T any](s *server, routes huma.API, method, path string, status int, id, summary string, f func(ctx context.Context, caller uint32, in *I) (T, error)) {
	op := huma.Operation{OperationID: id, Method: method, Path: prefix + path, DefaultStatus: status, Summary: summary, Errors: []int{http.StatusBadRequest}}
	huma.Register(routes, op, func(ctx context.Context, in *I) (*answer[T], error) {
		v, err := f(ctx, caller(ctx), in)
		if err != nil {
			return nil, s.coded(err)
		}
		return &answer[T]{v}, nil
	})
}

// routeEmpty registers a JSON route whose answer has no body.
func routeEmpty[I any](s *server, routes huma.API, method, path, id, summary string, f func(ctx context.Context, caller uint32, in *I) error) {
	op := huma.Operation{OperationID: id, Method: method, Path: prefix + path, DefaultStatus: http.StatusNoContent, Summary: summary, Errors: []int{http.StatusBadRequest}}
	huma.Register(routes, op, func(ctx context.Context, in *I) (*none, error) {
		if err := f(ctx, caller(ctx), in); err != nil {
			return nil, s.coded(err)
		}
		return nil, nil
	})
}

func onlyRoot(caller uint32, what string) error {
	if caller != 0 {
		return api.Errorf(api.CodePermissionDenied, "%s: only root may do that", what).WithHint("use sudo")
	}
	return nil
}

func (s *server) systemRoutes(routes huma.API) {
	route(s, routes, http.MethodGet, "/system", http.StatusOK, "system", "Describe the daemon.",
		func(context.Context, uint32, *none) (api.System, error) { return s.System(), nil })
	routeEmpty(s, routes, http.MethodPost, "/system/shutdown", "shutdown", "Stop the daemon; VMs run on. Root only.",
		func(_ context.Context, caller uint32, _ *none) error {
			if err := onlyRoot(caller, "stop the daemon"); err != nil {
				return err
			}
			s.Shutdown()
			return nil
		})
}

func (s *server) vmRoutes(routes huma.API) {
	route(s, routes, http.MethodGet, "/vms", http.StatusOK, "list-vms", "List the caller's VMs, all for root.",
		func(ctx context.Context, caller uint32, _ *none) ([]api.VM, error) { return s.VMs.List(ctx, caller) })
	route(s, routes, http.MethodPost, "/vms", http.StatusAccepted, "create-vm", "Create a VM.",
		func(ctx context.Context, caller uint32, in *struct{ Body api.CreateVM }) (createdBody, error) {
			vm, op, err := s.VMs.Create(ctx, caller, in.Body)
			return createdBody{vm, op}, err
		})
	route(s, routes, http.MethodGet, "/vms/{vm}", http.StatusOK, "get-vm", "Get a VM.",
		func(ctx context.Context, caller uint32, in *vmInput) (api.VM, error) {
			return s.VMs.Get(ctx, caller, in.VM)
		})
	route(s, routes, http.MethodDelete, "/vms/{vm}", http.StatusAccepted, "delete-vm", "Delete a VM and its disk.",
		func(ctx context.Context, caller uint32, in *struct {
			VM    string `path:"vm"`
			Force bool   `query:"force" doc:"Also one that runs."`
		}) (operationBody, error) {
			op, err := s.VMs.Delete(ctx, caller, in.VM, in.Force)
			return operationBody{op}, err
		})
	route(s, routes, http.MethodPost, "/vms/{vm}/start", http.StatusAccepted, "start-vm", "Boot a VM.",
		func(ctx context.Context, caller uint32, in *vmInput) (operationBody, error) {
			op, err := s.VMs.Start(ctx, caller, in.VM)
			return operationBody{op}, err
		})
	route(s, routes, http.MethodPost, "/vms/{vm}/stop", http.StatusAccepted, "stop-vm", "Ask a VM to power off; kill it where it does not.",
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body *api.StopVM
		}) (operationBody, error) {
			timeout, err := stopTimeout(in.Body)
			if err != nil {
				return operationBody{}, err
			}
			op, err := s.VMs.Stop(ctx, caller, in.VM, timeout)
			return operationBody{op}, err
		})
	route(s, routes, http.MethodPost, "/vms/{vm}/kill", http.StatusAccepted, "kill-vm", "End a VM without asking it.",
		func(ctx context.Context, caller uint32, in *vmInput) (operationBody, error) {
			op, err := s.VMs.Kill(ctx, caller, in.VM)
			return operationBody{op}, err
		})
}

// changeRoutes are those that make a VM something else.
func (s *server) changeRoutes(routes huma.API) {
	route(s, routes, http.MethodPatch, "/vms/{vm}", http.StatusAccepted, "set-vm", "Change what a VM is.",
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body api.SetVM
		}) (operationBody, error) {
			op, err := s.VMs.Set(ctx, caller, in.VM, in.Body)
			return operationBody{op}, err
		})
	route(s, routes, http.MethodPost, "/vms/{vm}/restart", http.StatusAccepted, "restart-vm", "Stop a VM, if it runs, and start it.",
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body *api.StopVM
		}) (operationBody, error) {
			timeout, err := stopTimeout(in.Body)
			if err != nil {
				return operationBody{}, err
			}
			op, err := s.VMs.Restart(ctx, caller, in.VM, timeout)
			return operationBody{op}, err
		})
	route(s, routes, http.MethodPost, "/vms/{vm}/reset", http.StatusAccepted, "reset-vm", "Give a VM a fresh root; its work disk stays.",
		func(ctx context.Context, caller uint32, in *vmInput) (operationBody, error) {
			op, err := s.VMs.Reset(ctx, caller, in.VM)
			return operationBody{op}, err
		})
	route(s, routes, http.MethodPost, "/vms/{vm}/promote", http.StatusAccepted, "promote-vm", "Make an image of the root of a stopped VM.",
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body api.PromoteVM
		}) (operationBody, error) {
			op, err := s.VMs.Promote(ctx, caller, in.VM, in.Body.Image)
			return operationBody{op}, err
		})
}

func (s *server) sshRoutes(routes huma.API) {
	route(s, routes, http.MethodPut, "/vms/{vm}/ssh", http.StatusOK, "authorize-ssh",
		"Let the caller into their VMs by ssh with a public key, root into all, and learn the VM's host key.",
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm" doc:"Name, id, or the beginning of the id."`
			Body api.SSHKey
		}) (api.SSHAccess, error) {
			return s.VMs.AuthorizeSSH(ctx, caller, in.VM, in.Body.PublicKey)
		})
}

func stopTimeout(req *api.StopVM) (time.Duration, error) {
	if req == nil {
		return 0, nil
	}
	if math.IsNaN(req.Timeout) || req.Timeout < 0 || req.Timeout > maxStopTimeout.Seconds() {
		return 0, api.Errorf(api.CodeInvalid, "stop VM: timeout %v: not between 0 and %v seconds", req.Timeout, maxStopTimeout.Seconds())
	}
	return time.Duration(req.Timeout * float64(time.Second)), nil
}

// visible finds an operation of the caller's, any for root.
func (s *server) visible(caller uint32, id string) (api.Operation, error) {
	op, ok := s.Operations.Get(id)
	if !ok || caller != 0 && caller != op.Owner {
		return api.Operation{}, api.Errorf(api.CodeNotFound, "operation %q: no such operation", id)
	}
	return op, nil
}

func (s *server) operationRoutes(routes huma.API) {
	route(s, routes, http.MethodGet, "/operations", http.StatusOK, "list-operations", "List the caller's operations, all for root.",
		func(_ context.Context, caller uint32, _ *none) ([]api.Operation, error) {
			return slices.DeleteFunc(s.Operations.List(), func(op api.Operation) bool { return caller != 0 && caller != op.Owner }), nil
		})
	route(s, routes, http.MethodGet, "/operations/{id}", http.StatusOK, "get-operation", "Get an operation.",
		func(_ context.Context, caller uint32, in *idInput) (api.Operation, error) {
			return s.visible(caller, in.ID)
		})
	routeEmpty(s, routes, http.MethodDelete, "/operations/{id}", "cancel-operation", "Ask an operation to end.",
		func(_ context.Context, caller uint32, in *idInput) error {
			if _, err := s.visible(caller, in.ID); err != nil {
				return err
			}
			s.Operations.Cancel(in.ID)
			return nil
		})
}

func (s *server) imageRoutes(routes huma.API) {
	route(s, routes, http.MethodGet, "/images", http.StatusOK, "list-images", "List the images that the caller may use.",
		func(ctx context.Context, caller uint32, _ *none) ([]api.Image, error) {
			return each(imageOut)(s.Images.List(ctx, caller))
		})
	route(s, routes, http.MethodGet, "/images/{name}", http.StatusOK, "get-image", "Get an image.",
		func(ctx context.Context, caller uint32, in *nameInput) (api.Image, error) {
			i, err := s.Images.Get(ctx, caller, in.Name)
			return imageOut(i), err
		})
	routeEmpty(s, routes, http.MethodDelete, "/images/{name}", "remove-image", "Remove an image that no VM uses.",
		func(ctx context.Context, caller uint32, in *nameInput) error {
			return s.Images.Remove(ctx, caller, in.Name)
		})
}

func (s *server) kernelRoutes(routes huma.API) {
	route(s, routes, http.MethodGet, "/kernels", http.StatusOK, "list-kernels", "List the kernels.",
		func(ctx context.Context, _ uint32, _ *none) ([]api.Kernel, error) {
			return each(kernelOut)(s.Kernels.List(ctx))
		})
	route(s, routes, http.MethodGet, "/kernels/{name}", http.StatusOK, "get-kernel", "Get a kernel.",
		func(ctx context.Context, _ uint32, in *nameInput) (api.Kernel, error) {
			k, err := s.Kernels.Get(ctx, in.Name)
			return kernelOut(k), err
		})
	routeEmpty(s, routes, http.MethodDelete, "/kernels/{name}", "remove-kernel", "Remove a kernel that no VM uses. Root only.",
		func(ctx context.Context, caller uint32, in *nameInput) error {
			if err := onlyRoot(caller, "remove kernel "+in.Name); err != nil {
				return err
			}
			return s.Kernels.Remove(ctx, in.Name)
		})
	route(s, routes, http.MethodPost, "/kernels/pull", http.StatusAccepted, "pull-kernel", "Fetch a kernel through the host's package manager.",
		func(_ context.Context, caller uint32, _ *none) (operationBody, error) {
			op := s.Operations.Make(caller, "kernel.pull", "kernel", func(ctx context.Context, report api.Reporter) (string, error) {
				k, err := s.Kernels.Pull(ctx, report)
				return k.Name, err
			})
			return operationBody{op}, nil
		})
}

// each converts the result of a List.
func each[A, B any](convert func(A) B) func([]A, error) ([]B, error) {
	return func(in []A, err error) ([]B, error) {
		out := make([]B, 0, len(in))
		for _, v := range in {
			out = append(out, convert(v))
		}
		return out, err
	}
}

func imageOut(i image.Image) api.Image {
	out := api.Image{ID: i.ID, Name: i.Name, Owner: i.Owner, Created: i.Created, Entries: i.Entries, Layers: []api.Layer{}}
	for _, l := range i.Layers {
		out.Layers = append(out.Layers, api.Layer{Digest: l.Digest, Size: l.Size})
		out.Size += l.Size
	}
	return out
}

func kernelOut(k kernel.Kernel) api.Kernel {
	return api.Kernel{Name: k.Name, Release: k.Release, Source: k.Source, Default: k.Default, Created: k.Created, Size: k.Size}
}
