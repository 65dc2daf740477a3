package client

import (
	"context"
	"net/http"

	"banger/api"
)

// System describes the daemon.
func (c *Client) System(ctx context.Context) (api.System, error) {
	return get[api.System](ctx, c, "system")
}

// Shutdown stops the daemon; VMs run on. It returns when the daemon has agreed,
// which is before it has ended. Only root may do that.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, request{method: http.MethodPost, path: []string{"system", "shutdown"}}, nil, nil)
}

// DiskUsage measures what takes the disk, as far as the caller may see it.
func (c *Client) DiskUsage(ctx context.Context) (api.DiskUsage, error) {
	return get[api.DiskUsage](ctx, c, "system", "df")
}

// Prune removes what nobody needs, as far as it is the caller's to remove.
func (c *Client) Prune(ctx context.Context, req api.Prune) (api.Pruned, error) {
	var out api.Pruned
	err := c.call(ctx, request{method: http.MethodPost, path: []string{"system", "prune"}}, req, &out)
	return out, err
}

// Examine looks at the host and the installation, and changes nothing.
func (c *Client) Examine(ctx context.Context) (api.Diagnosis, error) {
	return get[api.Diagnosis](ctx, c, "system", "doctor")
}

// Repair puts what is banger's on the host in order, and looks again. Only root may
// do that.
func (c *Client) Repair(ctx context.Context) (api.Diagnosis, error) {
	var out api.Diagnosis
	err := c.call(ctx, request{method: http.MethodPost, path: []string{"system", "doctor"}}, nil, &out)
	return out, err
}
