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
