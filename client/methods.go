package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"banger/api"
)

// CreateVM makes a VM. The VM returned is as it is at the beginning; it is there
// to use when the operation has succeeded (see Wait).
func (c *Client) CreateVM(ctx context.Context, req api.CreateVM) (api.VM, api.Operation, error) {
	var out struct {
		VM        api.VM        `json:"vm"`
		Operation api.Operation `json:"operation"`
	}
	err := c.call(ctx, request{method: http.MethodPost, path: []string{"vms"}}, req, &out)
	return out.VM, out.Operation, err
}

// VMs returns the VMs that the caller may see, oldest first.
func (c *Client) VMs(ctx context.Context) ([]api.VM, error) {
	return list[api.VM](ctx, c, "vms")
}

// VM returns one VM. Here and below, ref is its name, its id, or the beginning of
// its id if no other has the same.
func (c *Client) VM(ctx context.Context, ref string) (api.VM, error) {
	return get[api.VM](ctx, c, "vms", ref)
}

// begin sends a request that is answered with an operation.
func (c *Client) begin(ctx context.Context, r request, in any) (api.Operation, error) {
	var out struct {
		Operation api.Operation `json:"operation"`
	}
	err := c.call(ctx, r, in, &out)
	return out.Operation, err
}

// StartVM boots a VM; the operation ends when the agent in it answers. One that is
// suspended goes on where it was.
func (c *Client) StartVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "start"}}, nil)
}

// ColdStartVM is StartVM that boots a suspended VM too: what was in its memory is
// dropped.
func (c *Client) ColdStartVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "start"}}, api.StartVM{Cold: true})
}

// PauseVM has a running VM stand still, its memory where it is.
func (c *Client) PauseVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "pause"}}, nil)
}

// ResumeVM has a paused VM go on.
func (c *Client) ResumeVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "resume"}}, nil)
}

// SuspendVM writes a VM's memory to the disk and ends its VMM; StartVM has it go on, also
// after a restart of the host.
func (c *Client) SuspendVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "suspend"}}, nil)
}

// StopVM asks the guest to power off and kills it after timeout, or after the
// daemon's default where that is 0.
func (c *Client) StopVM(ctx context.Context, ref string, req api.StopVM) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "stop"}}, req)
}

// KillVM ends a VM without asking the guest.
func (c *Client) KillVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "kill"}}, nil)
}

// DeleteVM removes a VM and its disk; with force also one that runs.
func (c *Client) DeleteVM(ctx context.Context, ref string, force bool) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodDelete, path: []string{"vms", ref},
		query: url.Values{"force": {strconv.FormatBool(force)}}}, nil)
}

// SetVM changes what a VM is.
func (c *Client) SetVM(ctx context.Context, ref string, req api.SetVM) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPatch, path: []string{"vms", ref}}, req)
}

// RestartVM stops a VM as StopVM does, if it runs, and starts it.
func (c *Client) RestartVM(ctx context.Context, ref string, timeout time.Duration) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "restart"}}, api.StopVM{Timeout: timeout.Seconds()})
}

// ResetVM gives a VM a fresh root, as at its creation; its work disk stays. One that
// runs is stopped for it and started again.
func (c *Client) ResetVM(ctx context.Context, ref string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "reset"}}, nil)
}

// PromoteVM makes an image of the root of a stopped VM.
func (c *Client) PromoteVM(ctx context.Context, ref, image string) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"vms", ref, "promote"}}, api.PromoteVM{Image: image})
}

// Lease holds a lease on a VM, which keeps an ephemeral one from being deleted,
// until ctx ends; then it returns nil. An error says that the lease could not be
// had, or that the daemon ended it (unavailable; it may be asked for again).
func (c *Client) Lease(ctx context.Context, ref string) error {
	r := request{method: http.MethodGet, path: []string{"vms", ref, "lease"}}
	resp, err := c.send(ctx, r)
	if err == nil {
		defer resp.Body.Close()
		if _, err = io.Copy(io.Discard, resp.Body); err == nil {
			err = io.ErrUnexpectedEOF
		}
		err = broken(ctx, r, err)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Images returns the images that the caller may use.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return list[api.Image](ctx, c, "images")
}

// Image returns one image.
func (c *Client) Image(ctx context.Context, name string) (api.Image, error) {
	return get[api.Image](ctx, c, "images", name)
}

// ImportImage makes an image from a tar archive, plain or compressed with gzip,
// zstd or xz, which it reads from r to its end.
func (c *Client) ImportImage(ctx context.Context, name string, r io.Reader) (api.Image, error) {
	return upload[api.Image](ctx, c, r, nil, "images", name)
}

// ReplaceImage is ImportImage, but an image of the caller's that has the name loses it.
func (c *Client) ReplaceImage(ctx context.Context, name string, r io.Reader) (api.Image, error) {
	return upload[api.Image](ctx, c, r, api.ImportImage{Replace: true}.Values(), "images", name)
}

// PullImage gets an image from a registry. The result of the operation is its name.
func (c *Client) PullImage(ctx context.Context, req api.PullImage) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"images", "pull"}}, req)
}

// RemoveImage removes an image that no VM uses.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: []string{"images", name}}, nil, nil)
}

// TagImage gives an image another name, which is the caller's.
func (c *Client) TagImage(ctx context.Context, name, as string) (api.Image, error) {
	var out api.Image
	err := c.call(ctx, request{method: http.MethodPost, path: []string{"images", name, "tag"}}, api.TagImage{Name: as}, &out)
	return out, err
}

// ImageHistory says how an image came about, oldest step first.
func (c *Client) ImageHistory(ctx context.Context, name string) ([]api.ImageHistory, error) {
	return list[api.ImageHistory](ctx, c, "images", name, "history")
}

// ExportImage returns an image as an OCI Image Layout in a tar archive, which the caller
// closes. One that is not whole ends with an error instead of io.EOF.
func (c *Client) ExportImage(ctx context.Context, name string) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, path: []string{"images", name, "export"}}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	return &trailed{ctx, r, resp}, nil
}

// PruneImages removes images that no VM needs.
func (c *Client) PruneImages(ctx context.Context, req api.PruneImages) (api.Pruned, error) {
	var out api.Pruned
	err := c.call(ctx, request{method: http.MethodPost, path: []string{"images", "prune"}}, req, &out)
	return out, err
}

// Kernels returns all kernels.
func (c *Client) Kernels(ctx context.Context) ([]api.Kernel, error) {
	return list[api.Kernel](ctx, c, "kernels")
}

// Kernel returns one kernel.
func (c *Client) Kernel(ctx context.Context, name string) (api.Kernel, error) {
	return get[api.Kernel](ctx, c, "kernels", name)
}

// PullKernel fetches a kernel through the host's package manager.
func (c *Client) PullKernel(ctx context.Context) (api.Operation, error) {
	return c.begin(ctx, request{method: http.MethodPost, path: []string{"kernels", "pull"}}, nil)
}

// ImportKernel makes a kernel from a .deb package of one, from what make tar-pkg makes, or
// from an image that carries its configuration. Only root may do that.
func (c *Client) ImportKernel(ctx context.Context, name string, r io.Reader) (api.Kernel, error) {
	return upload[api.Kernel](ctx, c, r, nil, "kernels", name)
}

// OfferedKernel says which kernel PullKernel would get.
func (c *Client) OfferedKernel(ctx context.Context) (api.KernelOffer, error) {
	return get[api.KernelOffer](ctx, c, "kernels", "pull", "offer")
}

// DefaultKernel makes a kernel the one that VMs get for which none is named. Only root
// may do that.
func (c *Client) DefaultKernel(ctx context.Context, name string) (api.Kernel, error) {
	var out api.Kernel
	err := c.call(ctx, request{method: http.MethodPost, path: []string{"kernels", name, "default"}}, nil, &out)
	return out, err
}

// RemoveKernel removes a kernel that no VM uses. Only root may do that.
func (c *Client) RemoveKernel(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: []string{"kernels", name}}, nil, nil)
}
