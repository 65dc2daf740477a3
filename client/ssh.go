package client

import (
	"context"
	"io"
	"net/http"

	"banger/api"
)

// Stream is a raw connection: bytes in both directions. CloseWrite ends the one to
// the VM and leaves the other one open; Close ends both.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// AuthorizeSSH lets the caller into their VMs by ssh, root into all, with a public
// key: one line as in a .pub file of ssh-keygen (RFC 4716's format is not taken).
// The VM need not run. The answer holds the host key with which the VM's ssh server
// proves who it is, to be given to ssh as the only one to trust.
func (c *Client) AuthorizeSSH(ctx context.Context, ref, publicKey string) (api.SSHAccess, error) {
	var out api.SSHAccess
	err := c.call(ctx, request{method: http.MethodPut, path: []string{"vms", ref, "ssh"}}, api.SSHKey{PublicKey: publicKey}, &out)
	return out, err
}

// SSH connects to the ssh server in a running VM (RFC 4253), over the daemon and
// so without a network. ctx bounds the time until the connection is there, and a
// daemon that ends ends the connection too. The caller closes the stream.
func (c *Client) SSH(ctx context.Context, ref string) (Stream, error) {
	r := request{method: http.MethodGet, path: []string{"vms", ref, "ssh"},
		header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {api.UpgradeStream}}}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	stream, ok := resp.Body.(Stream)
	if !ok { // an answer that is no stream
		resp.Body.Close()
		return nil, api.Errorf(api.CodeInternal, "%s: bangerd answered %s and not with a stream", r, resp.Status)
	}
	return stream, nil
}
