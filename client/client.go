package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/api"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// baseURL carries a host because HTTP wants one; the socket decides.
	baseURL = "http://bangerd/" + api.Version
	// maxSocketPath is what sun_path holds beside its final NUL; unix(7).
	maxSocketPath = 107
	maxAnswer     = 32 << 20
	maxError      = 64 << 10

	// A broken wait is taken up again so often, with such pauses, unless there is
	// progress: about ten seconds, in which a daemon restarts.
	reconnectTries = 40
	reconnectPause = 250 * time.Millisecond
)

// Client talks to one daemon. It holds no connection between requests, and its
// methods may be called from any goroutine. Their errors are *api.Error; one that
// came from the end of ctx wraps ctx's error.
type Client struct {
	socket string
	http   *http.Client
	pause  time.Duration
}

// New returns a Client for the daemon that listens on a Unix socket, whose path
// may be longer than the kernel's limit for addresses. It does not connect yet.
func New(socket string) *Client {
	c := &Client{socket: socket, pause: reconnectPause}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
			// The daemon may restart between two requests.
			DisableKeepAlives:     true,
			ExpectContinueTimeout: time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// dial connects to the daemon. Its errors are as users should see them.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := dialUnix(ctx, c.socket)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, api.Errorf(api.CodePermissionDenied, "connect to bangerd on %s: %w", c.socket, syscall.EACCES).
			WithHint("use sudo, or become a member of the group that may use it (in the README: who may use it)")
	case ctx.Err() != nil:
		return nil, api.Errorf(api.CodeUnavailable, "connect to bangerd on %s: %w", c.socket, ctx.Err())
	}
	return nil, api.Errorf(api.CodeUnavailable, "bangerd does not answer on %s: %w", c.socket, root(err)).
		WithHint("any command of root's starts it, such as banger vm list")
}

// root is the innermost error: what net puts around it repeats the address.
func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// request is one request: the path's elements come unescaped.
type request struct {
	method string
	path   []string
	query  url.Values
	header http.Header
	body   io.Reader
	length int64 // of the body, where it is known
}

func (r request) String() string { return r.method + " " + strings.Join(r.path, "/") }

func (r request) url() (string, error) {
	var b strings.Builder
	b.WriteString(baseURL)
	for _, elem := range r.path {
		switch elem {
		case "":
			what := strings.TrimSuffix(r.path[0], "s")
			return "", api.Errorf(api.CodeInvalid, "the name of the %s is empty", what).WithHint("banger %s list", what)
		case ".", "..": // would be taken for steps in the path
			elem = strings.ReplaceAll(elem, ".", "%2E")
		default:
			elem = url.PathEscape(elem)
		}
		b.WriteString("/" + elem)
	}
	if len(r.query) > 0 {
		b.WriteString("?" + r.query.Encode())
	}
	return b.String(), nil
}

// send returns the answer if it is one of success; its body must be closed.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	target, err := r.url()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, r.body)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "%s: %w", r, err)
	}
	if r.header != nil {
		req.Header = r.header
	}
	if r.length > 0 {
		req.ContentLength = r.length
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, broken(ctx, r, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols && (resp.StatusCode < 200 || resp.StatusCode > 299) {
		defer resp.Body.Close()
		return nil, decodeError(r, resp)
	}
	return resp, nil
}

// broken is the error for a connection that could not be made or ended early.
func broken(ctx context.Context, r request, err error) error {
	if coded, ok := errors.AsType[*api.Error](err); ok {
		return coded
	}
	if ctx.Err() != nil {
		return api.Errorf(api.CodeUnavailable, "%s: %w", r, ctx.Err())
	}
	return api.Errorf(api.CodeUnavailable, "%s: the connection to bangerd broke: %w", r, root(err)).
		WithHint("look at the daemon's log")
}

func decodeError(r request, resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
	var e api.Error
	if err := json.Unmarshal(text, &e); err != nil || e.Code == "" || e.Message == "" {
		return api.Errorf(api.CodeInternal, "%s: bangerd answered %s without an error of its own", r, resp.Status)
	}
	return &e
}

// call sends in as JSON (nothing if it is nil) and decodes the answer into out
// (which is ignored if it is nil).
func (c *Client) call(ctx context.Context, r request, in, out any) error {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "%s: %w", r, err)
		}
		r.body = bytes.NewReader(b)
		r.header = http.Header{"Content-Type": {"application/json"}}
	}
	return c.receive(ctx, r, func(answer io.Reader) error {
		if out == nil {
			return nil
		}
		text, err := io.ReadAll(answer)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, out)
	})
}

// receive sends a request and has decode read the answer, if it is one of success.
func (c *Client) receive(ctx context.Context, r request, decode func(io.Reader) error) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in := &received{r: io.LimitReader(resp.Body, maxAnswer)}
	err = decode(in)
	switch {
	case in.err != nil:
		return broken(ctx, r, in.err)
	case err != nil:
		return api.Errorf(api.CodeInternal, "%s: decode the answer: %w", r, err)
	}
	return nil
}

func get[T any](ctx context.Context, c *Client, path ...string) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodGet, path: path}, nil, &out)
	return out, err
}

// list gets a list, whose first elements it decodes while the daemon still writes the
// last.
func list[T any](ctx context.Context, c *Client, path ...string) ([]T, error) {
	var out []T
	err := c.receive(ctx, request{method: http.MethodGet, path: path}, func(answer io.Reader) (err error) {
		out, err = decodeList[T](jsontext.NewDecoder(answer))
		return err
	})
	return out, err
}

func decodeList[T any](d *jsontext.Decoder) ([]T, error) {
	begin, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	if begin.Kind() != '[' {
		return nil, fmt.Errorf("a list begins with %s", begin)
	}
	out := []T{}
	for d.PeekKind() != ']' {
		var v T
		if err := jsonv2.UnmarshalDecode(d, &v); err != nil { // also at an early end
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// received is an answer that remembers why it broke off.
type received struct {
	r   io.Reader
	err error
}

func (r *received) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// upload sends a stream, with its length where it has a method Len that tells, as
// bytes.Reader does. The daemon may refuse it before it is sent.
func upload[T any](ctx context.Context, c *Client, body io.Reader, query url.Values, path ...string) (T, error) {
	var out T
	r := request{method: http.MethodPut, path: path, query: query, body: io.NopCloser(body),
		header: http.Header{"Content-Type": {"application/octet-stream"}, "Expect": {"100-continue"}}}
	if l, ok := body.(interface{ Len() int }); ok {
		r.length = int64(l.Len())
	}
	err := c.call(ctx, r, nil, &out)
	return out, err
}
