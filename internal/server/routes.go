package server

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/kernel"
)

// maxStopTimeout bounds what a caller may give a guest to power off.
const maxStopTimeout = 24 * time.Hour

// maxReason bounds what a caller may say of why a VM is stopped, in bytes.
const maxReason = 200

type none struct{}

type answer[T any] struct{ Body T }

type operationBody struct {
	Operation api.Operation `json:"operation" doc:"The operation that was begun."`
}

type createdBody struct {
	VM        api.VM        `json:"vm" doc:"The VM as it is at the beginning."`
	Operation api.Operation `json:"operation" doc:"The operation that was begun."`
}

// ofVM is with what a route is refused that only has to find a VM: one that the
// caller may not see is not found, the beginning of several ids is invalid.
var ofVM = []api.Code{api.CodeInvalid, api.CodeNotFound}

type vmInput struct {
	VM string `path:"vm"`
}

type nameInput struct {
	Name string `path:"name"`
}

type idInput struct {
	ID string `path:"id"`
}

func onlyRoot(caller uint32, what string) error {
	if caller != 0 {
		return api.Errorf(api.CodePermissionDenied, "%s: only root may do that", what).WithHint("use sudo")
	}
	return nil
}

func (s *server) systemRoutes(routes huma.API) {
	route(s, routes, spec{"GET /system", http.StatusOK, "system", "Describe the daemon.",
		"", nil},
		func(context.Context, uint32, *none) (api.System, error) { return s.System(), nil })
	routeEmpty(s, routes, spec{"POST /system/shutdown", http.StatusNoContent, "shutdown", "Stop the daemon.",
		"VMs run on; the next daemon finds them again. The answer comes before the daemon has ended. Root only.", nil},
		func(_ context.Context, caller uint32, _ *none) error {
			if err := onlyRoot(caller, "stop the daemon"); err != nil {
				return err
			}
			s.Shutdown()
			return nil
		})
}

func (s *server) vmRoutes(routes huma.API) {
	route(s, routes, spec{"GET /vms", http.StatusOK, "list-vms", "List the caller's VMs, all for root.",
		"Oldest first.", nil},
		func(ctx context.Context, caller uint32, _ *none) ([]api.VM, error) { return s.VMs.List(ctx, caller) })
	route(s, routes, spec{"POST /vms", http.StatusAccepted, "create-vm", "Create a VM.",
		"The VM is there, under its name, when the answer comes; the operation ends when it has been started, if that was asked for. What is absent takes the configured default.", []api.Code{api.CodeInvalid, api.CodeNotFound, api.CodeAlreadyExists, api.CodeConflict, api.CodeNoSpace, api.CodeUnsupported}},
		func(ctx context.Context, caller uint32, in *struct{ Body api.CreateVM }) (createdBody, error) {
			vm, op, err := s.VMs.Create(ctx, caller, in.Body)
			return createdBody{vm, op}, err
		})
	route(s, routes, spec{"GET /vms/{vm}", http.StatusOK, "get-vm", "Get a VM.",
		"", ofVM},
		func(ctx context.Context, caller uint32, in *vmInput) (api.VM, error) {
			return s.VMs.Get(ctx, caller, in.VM)
		})
	route(s, routes, spec{"DELETE /vms/{vm}", http.StatusAccepted, "delete-vm", "Delete a VM and its disk.",
		"Its root disk and its work disk go with it. The operation is refused for a VM that is not stopped, unless force is given.", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM    string `path:"vm"`
			Force bool   `query:"force" doc:"Also one that runs."`
		}) (operationBody, error) {
			op, err := s.VMs.Delete(ctx, caller, in.VM, in.Force)
			return operationBody{op}, err
		})
	route(s, routes, spec{"POST /vms/{vm}/start", http.StatusAccepted, "start-vm", "Boot a VM, or wake it.",
		"One that is suspended goes on where it was; where that is not possible, the operation fails, says why, and leaves it suspended. The operation ends when the agent in the guest answers.", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body *api.StartVM
		}) (operationBody, error) {
			start := s.VMs.Start
			if in.Body != nil && in.Body.Cold {
				start = s.VMs.ColdStart
			}
			op, err := start(ctx, caller, in.VM)
			return operationBody{op}, err
		})
	route(s, routes, spec{"POST /vms/{vm}/stop", http.StatusAccepted, "stop-vm", "Ask a VM to power off; kill it where it does not.",
		"The guest is asked to power off, and killed when the timeout is over.", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body *api.StopVM
		}) (operationBody, error) {
			timeout, reason, err := howToStop(in.Body)
			if err != nil {
				return operationBody{}, err
			}
			op, err := s.VMs.Stop(ctx, caller, in.VM, timeout, reason)
			return operationBody{op}, err
		})
	route(s, routes, spec{"POST /vms/{vm}/kill", http.StatusAccepted, "kill-vm", "End a VM without asking it.",
		"What one that is suspended was at is dropped.", ofVM},
		func(ctx context.Context, caller uint32, in *vmInput) (operationBody, error) {
			op, err := s.VMs.Kill(ctx, caller, in.VM)
			return operationBody{op}, err
		})
}

// standstillRoutes are those that have a VM stand still and go on.
func (s *server) standstillRoutes(routes huma.API) {
	for _, r := range []struct {
		verb, short, long string
		do                func(VMs, context.Context, uint32, string) (api.Operation, error)
	}{
		{"pause", "Have a running VM stand still.", "Its memory stays where it is. Requests to its agent are refused until it is resumed.", VMs.Pause},
		{"resume", "Have a paused VM go on.", "Its clock is set, and its connections go on.", VMs.Resume},
		{"suspend", "Have a VM stand still on the disk.", "Its memory is written to the disk and its VMM ends; a start has it go on, also after a restart of the host.", VMs.Suspend},
	} {
		route(s, routes, spec{"POST /vms/{vm}/" + r.verb, http.StatusAccepted, r.verb + "-vm", r.short, r.long, ofVM},
			func(ctx context.Context, caller uint32, in *vmInput) (operationBody, error) {
				op, err := r.do(s.VMs, ctx, caller, in.VM)
				return operationBody{op}, err
			})
	}
}

// changeRoutes are those that make a VM something else.
func (s *server) changeRoutes(routes huma.API) {
	route(s, routes, spec{"PATCH /vms/{vm}", http.StatusAccepted, "set-vm", "Change a VM.",
		"What is absent stays as it is. Name, nat and disk sizes change at once; cpus and memory at the next start, until then they are listed as pending.", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body api.SetVM
		}) (operationBody, error) {
			op, err := s.VMs.Set(ctx, caller, in.VM, in.Body)
			return operationBody{op}, err
		})
	route(s, routes, spec{"POST /vms/{vm}/restart", http.StatusAccepted, "restart-vm", "Stop a VM, if it runs, and start it.",
		"", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body *api.StopVM
		}) (operationBody, error) {
			timeout, _, err := howToStop(in.Body) // it is to run again: there is nothing to explain
			if err != nil {
				return operationBody{}, err
			}
			op, err := s.VMs.Restart(ctx, caller, in.VM, timeout)
			return operationBody{op}, err
		})
	route(s, routes, spec{"POST /vms/{vm}/reset", http.StatusAccepted, "reset-vm", "Give a VM a fresh root; its work disk stays.",
		"One that runs is stopped for it and started again.", ofVM},
		func(ctx context.Context, caller uint32, in *vmInput) (operationBody, error) {
			op, err := s.VMs.Reset(ctx, caller, in.VM)
			return operationBody{op}, err
		})
	route(s, routes, spec{"POST /vms/{vm}/promote", http.StatusAccepted, "promote-vm", "Make an image of the root of a stopped VM.",
		"The image is the caller's. The root is read by a helper VM, never mounted on the host.", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm"`
			Body api.PromoteVM
		}) (operationBody, error) {
			op, err := s.VMs.Promote(ctx, caller, in.VM, in.Body.Image)
			return operationBody{op}, err
		})
}

func (s *server) sshRoutes(routes huma.API) {
	route(s, routes, spec{"PUT /vms/{vm}/ssh", http.StatusOK, "authorize-ssh", "Let a public key into VMs, and learn a VM's host key.",
		"The key lets its owner into the caller's VMs by ssh; root's into all.", ofVM},
		func(ctx context.Context, caller uint32, in *struct {
			VM   string `path:"vm" doc:"Name, id, or the beginning of the id."`
			Body api.SSHKey
		}) (api.SSHAccess, error) {
			return s.VMs.AuthorizeSSH(ctx, caller, in.VM, in.Body.PublicKey)
		})
}

func howToStop(req *api.StopVM) (timeout time.Duration, reason string, err error) {
	if req == nil {
		return 0, "", nil
	}
	if math.IsNaN(req.Timeout) || req.Timeout < 0 || req.Timeout > maxStopTimeout.Seconds() {
		return 0, "", api.Errorf(api.CodeInvalid, "stop VM: timeout %v: not between 0 and %v seconds", req.Timeout, maxStopTimeout.Seconds())
	}
	if len(req.Reason) > maxReason || strings.ContainsFunc(req.Reason, func(r rune) bool { return r < ' ' || r > '~' }) {
		return 0, "", api.Errorf(api.CodeInvalid, "stop VM: reason %q: not at most %d characters of printable ASCII", req.Reason, maxReason)
	}
	return time.Duration(req.Timeout * float64(time.Second)), req.Reason, nil
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
	route(s, routes, spec{"GET /operations", http.StatusOK, "list-operations", "List the caller's operations, all for root.",
		"Oldest first. An operation is kept for some minutes after its end.", nil},
		func(_ context.Context, caller uint32, _ *none) ([]api.Operation, error) {
			return slices.DeleteFunc(s.Operations.List(), func(op api.Operation) bool { return caller != 0 && caller != op.Owner }), nil
		})
	route(s, routes, spec{"GET /operations/{id}", http.StatusOK, "get-operation", "Get an operation.",
		"", []api.Code{api.CodeNotFound}},
		func(_ context.Context, caller uint32, in *idInput) (api.Operation, error) {
			return s.visible(caller, in.ID)
		})
	routeEmpty(s, routes, spec{"DELETE /operations/{id}", http.StatusNoContent, "cancel-operation", "Ask an operation to end.",
		"The answer comes at once; the operation's status says when and how it ended. One that has ended stays as it is.", []api.Code{api.CodeNotFound}},
		func(_ context.Context, caller uint32, in *idInput) error {
			if _, err := s.visible(caller, in.ID); err != nil {
				return err
			}
			s.Operations.Cancel(in.ID)
			return nil
		})
}

func (s *server) kernelRoutes(routes huma.API) {
	route(s, routes, spec{"GET /kernels", http.StatusOK, "list-kernels", "List the kernels.",
		"", nil},
		func(ctx context.Context, caller uint32, _ *none) ([]api.Kernel, error) {
			list, err := each(kernelOut)(s.Kernels.List(ctx))
			if err != nil {
				return nil, err
			}
			return list, s.withVMs(ctx, caller, list)
		})
	route(s, routes, spec{"GET /kernels/{name}", http.StatusOK, "get-kernel", "Get a kernel.",
		"", []api.Code{api.CodeNotFound}},
		func(ctx context.Context, caller uint32, in *nameInput) (api.Kernel, error) {
			k, err := s.Kernels.Get(ctx, in.Name)
			if err != nil {
				return api.Kernel{}, err
			}
			one := []api.Kernel{kernelOut(k)}
			err = s.withVMs(ctx, caller, one)
			return one[0], err
		})
	route(s, routes, spec{"POST /kernels/{name}/default", http.StatusOK, "default-kernel", "Make a kernel the default one.",
		"VMs that are made without naming a kernel get it; those that there are keep theirs. Root only.", []api.Code{api.CodeInvalid, api.CodeNotFound}},
		func(ctx context.Context, caller uint32, in *nameInput) (api.Kernel, error) {
			if err := onlyRoot(caller, "default kernel "+in.Name); err != nil {
				return api.Kernel{}, err
			}
			k, err := s.Kernels.SetDefault(ctx, in.Name)
			return kernelOut(k), err
		})
	route(s, routes, spec{"GET /kernels/pull/offer", http.StatusOK, "offered-kernel", "Say which kernel a pull would get.",
		"The host's package manager is asked; nothing is downloaded.", []api.Code{api.CodeUnavailable, api.CodeUnsupported}},
		func(ctx context.Context, _ uint32, _ *none) (api.KernelOffer, error) { return s.Kernels.Offered(ctx) })
	routeEmpty(s, routes, spec{"DELETE /kernels/{name}", http.StatusNoContent, "remove-kernel", "Remove a kernel that no VM uses.",
		"Root only.", []api.Code{api.CodeInvalid, api.CodeNotFound, api.CodeConflict}},
		func(ctx context.Context, caller uint32, in *nameInput) error {
			if err := onlyRoot(caller, "remove kernel "+in.Name); err != nil {
				return err
			}
			return s.Kernels.Remove(ctx, in.Name)
		})
	route(s, routes, spec{"POST /kernels/pull", http.StatusAccepted, "pull-kernel", "Fetch a kernel through the host's package manager.",
		"The daemon asks the host's package manager for its newest kernel of the kind that runs in virtual machines.", nil},
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

// withVMs fills in which VMs boot the kernels.
func (s *server) withVMs(ctx context.Context, caller uint32, kernels []api.Kernel) error {
	vms, err := s.VMs.List(ctx, caller)
	for i := range kernels {
		for _, v := range vms {
			if v.Kernel == kernels[i].Name {
				kernels[i].VMs = append(kernels[i].VMs, v.Name)
			}
		}
	}
	return err
}

func kernelOut(k kernel.Kernel) api.Kernel {
	return api.Kernel{VMs: []string{}, Name: k.Name, Release: k.Release, Source: k.Source, Default: k.Default, Created: k.Created, Size: k.Size}
}
