package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"banger/api"
)

// Stat looks at an absolute path in a running VM; with follow, at what symbolic
// links lead to, also one in the last element. Not_found where there is nothing.
func (c *Client) Stat(ctx context.Context, ref, path string, follow bool) (api.File, error) {
	var f api.File
	err := c.call(ctx, request{method: http.MethodGet, path: []string{"vms", ref, "stat"},
		query: url.Values{"path": {path}, "follow": {strconv.FormatBool(follow)}}}, nil, &f)
	return f, err
}

// ReadFiles returns a file or directory of a running VM as a tar archive, which the
// caller closes. The archive is the guest's word: who extracts it must not trust
// the names and links in it. One that could not be completed ends with an error
// instead of io.EOF.
func (c *Client) ReadFiles(ctx context.Context, ref string, q api.ReadFiles) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, path: []string{"vms", ref, "files"}, query: q.Values()}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	return &trailed{ctx, r, resp}, nil
}

// trailed is the body of an answer whose trailer may say why it is not whole.
type trailed struct {
	ctx  context.Context
	r    request
	resp *http.Response
}

func (a *trailed) Read(p []byte) (int, error) {
	n, err := a.resp.Body.Read(p)
	if err == nil {
		return n, nil
	}
	if err != io.EOF {
		return n, broken(a.ctx, a.r, err)
	}
	if text := a.resp.Trailer.Get(api.TrailerError); text != "" {
		var e api.Error
		if json.Unmarshal([]byte(text), &e) != nil || e.Message == "" {
			return n, api.Errorf(api.CodeInternal, "%s: the answer is not whole", a.r)
		}
		return n, &e
	}
	return n, io.EOF
}

func (a *trailed) Close() error { return a.resp.Body.Close() }

// pieces is how much of an archive is sent at once.
const pieces = 128 << 10

// WriteFiles extracts the tar archive r, which is read to its end, in a directory
// of a running VM. What was extracted before an error stays; a file is there under
// its name only when it is complete.
func (c *Client) WriteFiles(ctx context.Context, ref string, q api.WriteFiles, r io.Reader) error {
	body := io.NopCloser(bufio.NewReaderSize(r, pieces)) // left alone, net/http takes 32 KiB at a time
	return c.call(ctx, request{method: http.MethodPut, path: []string{"vms", ref, "files"}, query: q.Values(), body: body,
		header: http.Header{"Content-Type": {"application/x-tar"}, "Expect": {"100-continue"}}}, nil, nil)
}

// Logs returns what the VM's console printed, as the guest printed it. With
// q.Follow it goes on until the VM is deleted, when it ends with io.EOF; what comes
// with a restart of the VM is included. The caller closes it.
func (c *Client) Logs(ctx context.Context, ref string, q api.ReadLogs) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, path: []string{"vms", ref, "logs"}, query: q.Values()}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	return &trailed{ctx, r, resp}, nil
}

// Stats says what a running VM uses. Where the guest does not answer within some
// seconds, its figures are absent and the host's are there.
func (c *Client) Stats(ctx context.Context, ref string) (api.Stats, error) {
	return get[api.Stats](ctx, c, "vms", ref, "stats")
}

// Ports lists the sockets in a running VM at which something listens, by number.
func (c *Client) Ports(ctx context.Context, ref string) ([]api.Port, error) {
	return list[api.Port](ctx, c, "vms", ref, "ports")
}
