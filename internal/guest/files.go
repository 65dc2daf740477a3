package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"banger/api"
)

// ReadFiles has the agent send files as a tar archive. An archive that the agent
// could not complete ends with an error and not with io.EOF; io.ErrUnexpectedEOF is in
// its chain where the connection broke. What is in it is for who reads it to check.
func (c *Conn) ReadFiles(ctx context.Context, q api.ReadFiles) (io.ReadCloser, error) {
	resp, err := c.files(ctx, c.bulk, "read "+q.Path, http.MethodGet, "/files?"+q.Values().Encode(), nil)
	if err != nil {
		return nil, err
	}
	return &filesBody{resp, "read " + q.Path}, nil
}

// ReadLayer is ReadFiles for what the root has that its image does not, as a layer of an
// image.
func (c *Conn) ReadLayer(ctx context.Context) (io.ReadCloser, error) {
	resp, err := c.files(ctx, c.bulk, "read layer", http.MethodGet, "/layer", nil)
	if err != nil {
		return nil, err
	}
	return &filesBody{resp, "read layer"}, nil
}

// WriteFiles has the agent extract the tar archive r.
func (c *Conn) WriteFiles(ctx context.Context, q api.WriteFiles, r io.Reader) error {
	resp, err := c.files(ctx, c.bulk, "write to "+q.Path, http.MethodPut, "/files?"+q.Values().Encode(), chunked(r))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// chunked makes a body of r, which stays open, that net/http sends in pieces which, with
// what it puts around each, fit into bulkBuffer. Left alone, it takes 32 KiB at a time.
func chunked(r io.Reader) io.Reader {
	return io.NopCloser(bufio.NewReaderSize(r, bulkBuffer-64))
}

// Stat has the agent look at a path.
func (c *Conn) Stat(ctx context.Context, path string, follow bool) (api.File, error) {
	var f api.File
	err := c.ask(ctx, "look at "+path, "/stat?"+api.ReadFiles{Path: path, Follow: follow}.Values().Encode(), &f)
	if err != nil {
		return api.File{}, err
	}
	if !slices.Contains([]string{api.FileRegular, api.FileDirectory, api.FileSymlink, api.FileOther}, f.Kind) || api.CheckPath(f.Path) != nil || f.Size < 0 {
		return api.File{}, api.Errorf(api.CodeGuest, "look at %s: the agent's answer makes no sense", path)
	}
	f.Mode &= 0o7777
	f.Target = f.Target[:min(len(f.Target), 4096)]
	return f, nil
}

// ask makes a request that is answered with JSON, soon and briefly.
func (c *Conn) ask(ctx context.Context, what, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.files(ctx, c.transport, what, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return api.Errorf(api.CodeGuest, "%s: %w", what, err)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return api.Errorf(api.CodeGuest, "%s: the answer is not understood: %w", what, err)
	}
	return nil
}

// files makes a request to a route whose errors are api.Errors. It returns an answer
// of success; its body must be closed.
func (c *Conn) files(ctx context.Context, transport *http.Transport, what, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	resp, err := transport.RoundTrip(req)
	if coded, ok := errors.AsType[*api.Error](err); ok {
		return nil, coded // of the body's reader
	}
	if err != nil {
		return nil, api.Errorf(api.CodeGuest, "%s: %w", what, err)
	}
	switch {
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent:
		return resp, nil
	case resp.StatusCode == http.StatusNotFound && resp.Header.Get("Content-Type") != "application/json":
		err = api.Errorf(api.CodeGuest, "%s: the agent is too old for that", what).WithHint("stop the VM and start it again")
	default:
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
		err = said(what, text)
	}
	_ = resp.Body.Close()
	return nil, err
}

// believed are the codes that an agent's error may have.
var believed = []api.Code{api.CodeNotFound, api.CodeInvalid, api.CodeConflict, api.CodeNoSpace, api.CodePermissionDenied, api.CodeUnsupported}

// said is the error that an agent answered with, as api.Error in JSON.
func said(what string, text []byte) error {
	var e api.Error
	if err := json.Unmarshal(bytes.TrimSpace(text), &e); err != nil || plain(e.Message, maxMessage) == "" {
		return api.Errorf(api.CodeGuest, "%s: the agent answers with an error that is not understood", what)
	}
	if !slices.Contains(believed, e.Code) {
		e.Code = api.CodeGuest
	}
	err := api.Errorf(e.Code, "%s", plain(e.Message, maxMessage))
	if hint := plain(e.Hint, maxMessage); hint != "" {
		return err.WithHint("%s", hint)
	}
	return err
}

// filesBody is an archive from an agent.
type filesBody struct {
	resp *http.Response
	what string
}

func (b *filesBody) Read(p []byte) (int, error) {
	n, err := b.resp.Body.Read(p)
	switch {
	case err == nil:
	case err != io.EOF:
		err = api.Errorf(api.CodeGuest, "%s: the connection to the agent broke: %w (%w)", b.what, err, io.ErrUnexpectedEOF)
	case b.resp.Trailer.Get(api.TrailerError) != "":
		err = said(b.what, []byte(b.resp.Trailer.Get(api.TrailerError)))
	}
	return n, err
}

func (b *filesBody) Close() error { return b.resp.Body.Close() }
