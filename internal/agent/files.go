package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/archive"
	"banger/internal/linux"
)

const (
	// filesBuffer joins the small writes of a tar archive.
	filesBuffer = 256 << 10
	// maxTrailer bounds the text of an error in a trailer, which net/http reads with
	// a buffer of 4 KiB.
	maxTrailer = 1 << 10
	// drainTime is how long a host whose archive was refused may go on sending.
	drainTime = 3 * time.Second
)

// fileRoutes registers the routes that copy files. Their errors are api.Errors.
func fileRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /files", readFiles)
	mux.HandleFunc("PUT /files", writeFiles)
	mux.HandleFunc("GET /stat", stat)
	mux.HandleFunc("GET /layer", readLayer)
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the host is gone
}

func refuse(w http.ResponseWriter, err error) {
	e := api.AsError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Code.HTTPStatus())
	_ = json.NewEncoder(w).Encode(e) // the host is gone
}

// readFiles is GET /files: an archive of a tree. Where the tree cannot be read to its
// end, the archive is cut off and the trailer says why.
func readFiles(w http.ResponseWriter, r *http.Request) {
	q, err := api.ParseReadFiles(r.URL.Query())
	if err != nil {
		refuse(w, err)
		return
	}
	send(w, q.Path, archive.WriteOptions{Name: q.Name, Follow: q.Follow, OneFileSystem: q.OneFileSystem, Xattrs: true})
}

// readLayer is GET /layer: what the VM's root has that its image does not, as a layer.
func readLayer(w http.ResponseWriter, _ *http.Request) {
	send(w, filepath.Join(upperMount, "upper"), archive.WriteOptions{OneFileSystem: true, Xattrs: true, Layer: true})
}

// send answers with an archive.
func send(w http.ResponseWriter, path string, o archive.WriteOptions) {
	out := &begun{w: w}
	buf := bufio.NewWriterSize(out, filesBuffer)
	err := archive.Coded("read "+path, archive.Write(buf, path, o))
	switch {
	case err == nil:
		_ = buf.Flush() // the host is gone
	case !out.yes:
		refuse(w, err)
	default:
		_ = buf.Flush()
		e := *api.AsError(err)
		e.Message = e.Message[:min(len(e.Message), maxTrailer)]
		if text, err := json.Marshal(e); err == nil {
			w.Header().Set(api.TrailerError, string(text))
		}
	}
}

// begun is an answer that becomes an archive with the first byte.
type begun struct {
	w   http.ResponseWriter
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	if !b.yes {
		b.yes = true
		b.w.Header().Set("Content-Type", "application/x-tar")
		b.w.Header().Set("Trailer", api.TrailerError)
	}
	return b.w.Write(p)
}

// writeFiles is PUT /files: the body is an archive to be extracted.
func writeFiles(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	// With full duplex, net/http reads the next request wrongly where the body of this
	// one was not read to its end.
	if err := extract(r); err != nil {
		w.Header().Set("Connection", "close")
		refuse(w, err)
		// One who is cut off while sending does not read the answer.
		if rc.Flush() == nil && rc.SetReadDeadline(time.Now().Add(drainTime)) == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil { // what tar(1) pads an archive with
		w.Header().Set("Connection", "close")
	}
	w.WriteHeader(http.StatusNoContent)
}

func extract(r *http.Request) (err error) {
	q, err := api.ParseWriteFiles(r.URL.Query())
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(q.Path)
	if err != nil {
		return archive.Coded("write to "+q.Path, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	dir, err := root.Open(".")
	if err != nil {
		return archive.Coded("write to "+q.Path, err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	err = archive.Extract(root, bufio.NewReaderSize(r.Body, filesBuffer), archive.ExtractOptions{
		Name: q.Name, Owners: q.Archive, Devices: true, Quick: true, Room: func() (int64, error) { return linux.Room(dir) }})
	return archive.Coded("write to "+q.Path, err)
}

// stat is GET /stat: what a path leads to.
func stat(w http.ResponseWriter, r *http.Request) {
	q, err := api.ParseReadFiles(r.URL.Query())
	if err != nil {
		refuse(w, err)
		return
	}
	f, err := fileAt(q.Path, q.Follow)
	if err != nil {
		refuse(w, archive.Coded("look at "+q.Path, err))
		return
	}
	answer(w, f)
}

func fileAt(path string, follow bool) (api.File, error) {
	if follow {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return api.File{}, err
		}
		path = real
	}
	info, err := os.Lstat(path)
	if err != nil {
		return api.File{}, err
	}
	f := api.File{Path: path, Kind: api.FileOther, Size: info.Size(), Mode: archive.Mode(info.Mode()), Modified: info.ModTime()}
	switch info.Mode().Type() {
	case 0:
		f.Kind = api.FileRegular
	case fs.ModeDir:
		f.Kind = api.FileDirectory
	case fs.ModeSymlink:
		f.Kind = api.FileSymlink
		f.Target, err = os.Readlink(path)
	}
	return f, err
}
