package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"banger/api"
	"banger/internal/archive"
	"banger/internal/linux"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// streamBuffer joins the small writes of an archive.
const streamBuffer = 256 << 10

// copyFlags are the options of vm cp.
type copyFlags struct{ archive, follow bool }

func copyCommand(d *deps) *cobra.Command {
	var f copyFlags
	c := command(d, "cp SOURCE DESTINATION", "Copy files into a VM, or out of one", "banger vm cp ./site api:/srv/",
		cobra.ExactArgs(2), func(ctx context.Context, args []string) error { return d.copy(ctx, args[0], args[1], f) })
	c.Long = `Copy files into a running VM, or out of one. One of the two is VM:PATH, where a
path that is not absolute begins at /; the other one is a path here, or - for a
tar archive on standard input or output.

A directory is copied into a destination that is a directory, or becomes the
destination where there is none; SOURCE/. copies what is in it. A file is copied
into a directory, replaces a file, or becomes the destination. Nothing but the
destination's last element is made: its directory must exist.

What comes into a VM is root's, what comes out is yours, with permissions and
dates as they were.`
	c.Flags().BoolVarP(&f.archive, "archive", "a", false, "keep owners, setuid bits and extended attributes (out of a VM: if you are root)")
	c.Flags().BoolVarP(&f.follow, "follow-link", "L", false, "where SOURCE is a symbolic link, copy what it leads to")
	d.withQuiet(c, "show no progress")
	c.ValidArgsFunction = func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if strings.ContainsAny(typed, "/:.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		vms, _ := d.vms(c, nil, typed)
		for i, vm := range vms {
			name, about, _ := strings.Cut(vm, "\t")
			vms[i] = name + ":/\t" + about
		}
		return vms, cobra.ShellCompDirectiveNoSpace
	}
	return c
}

// place is an end of a copy.
type place struct {
	vm       string // empty: here
	path     string // clean
	base     string // its last element, as it was given
	dir      bool   // it was given with a slash at its end: it has to be a directory
	contents bool   // it was given with /. at its end: what is in it
	std      bool   // standard input or output
}

func (p place) String() string {
	if p.vm != "" {
		return p.vm + ":" + p.path
	}
	return p.path
}

// parsePlace reads an argument of cp. What begins with / or . is a path here,
// whatever follows.
func parsePlace(arg string) (place, error) {
	if arg == "-" {
		return place{std: true, path: arg}, nil
	}
	p := place{path: arg}
	if vm, rest, ok := strings.Cut(arg, ":"); ok && vm != "" && !strings.HasPrefix(arg, "/") && !strings.HasPrefix(arg, ".") {
		p.vm, p.path = vm, rest
	}
	if p.path == "" {
		return place{}, api.Errorf(api.CodeInvalid, "cp: %q has no path", arg).WithHint("name one, such as %s/", cmp.Or(p.vm, "VM")+":")
	}
	p.contents = p.path == "." || strings.HasSuffix(p.path, "/.")
	p.dir = p.contents || strings.HasSuffix(p.path, "/")
	if p.vm != "" {
		p.path = path.Join("/", p.path)
		p.base = path.Base(p.path)
	} else {
		whole, err := filepath.Abs(p.path)
		if err != nil {
			return place{}, api.Errorf(api.CodeInvalid, "cp: %s: %w", arg, err)
		}
		p.path, p.base = filepath.Clean(p.path), filepath.Base(whole)
	}
	if p.base == "/" {
		p.contents = true // it has no name
	}
	return p, nil
}

func (d *deps) copy(ctx context.Context, source, destination string, f copyFlags) error {
	src, err := parsePlace(source)
	if err != nil {
		return err
	}
	dst, err := parsePlace(destination)
	if err != nil {
		return err
	}
	switch {
	case src.vm != "" && dst.vm != "":
		return api.Errorf(api.CodeUnsupported, "cp: from VM to VM").WithHint("banger vm cp %s - | banger vm cp - %s", source, destination)
	case src.vm == "" && dst.vm == "":
		return api.Errorf(api.CodeInvalid, "cp: neither %s nor %s is in a VM", source, destination).WithHint("a path in a VM is written VM:PATH")
	case dst.vm != "":
		return d.copyIn(ctx, src, dst, f)
	}
	return d.copyOut(ctx, src, dst, f)
}

// found is what is at an end of a copy.
type found struct {
	exists, dir bool
	path        string // with links resolved, if it exists
}

// target says where the source goes: into the directory parent, as name; where that
// is empty, what is in the source goes there. The rules are those of docker cp.
func target(src place, srcDir bool, dst place, at found) (parent, name string, err error) {
	switch {
	case src.dir && !srcDir:
		return "", "", api.Errorf(api.CodeConflict, "cp: %s: not a directory", src)
	case at.exists && at.dir && src.contents:
		return at.path, "", nil
	case at.exists && at.dir:
		return at.path, src.base, nil
	case at.exists && (srcDir || dst.dir):
		return "", "", api.Errorf(api.CodeConflict, "cp: %s: not a directory", dst)
	case at.exists:
		return filepath.Dir(at.path), filepath.Base(at.path), nil
	case dst.dir && !srcDir:
		return "", "", api.Errorf(api.CodeNotFound, "cp: %s: no such directory", dst).WithHint("make it, or leave the / at the end out")
	}
	return filepath.Dir(dst.path), dst.base, nil
}

// counted is a stream whose bytes are shown as progress.
func (d *deps) counted(r io.Reader, src place, total int64) (io.Reader, *progress) {
	line := newProgress(d, true)
	return &counter{Reader: r, line: line, step: "copy " + src.String(), total: total}, line
}

// copyIn copies into a VM.
func (d *deps) copyIn(ctx context.Context, src, dst place, f copyFlags) error {
	vm, err := d.client.VM(ctx, dst.vm)
	if err != nil {
		return err
	}
	at := found{}
	switch file, err := d.client.Stat(ctx, vm.ID, dst.path, true); {
	case err == nil:
		at = found{exists: true, dir: file.Kind == api.FileDirectory, path: file.Path}
	case api.CodeOf(err) != api.CodeNotFound:
		return err
	}
	if src.std {
		if !at.dir {
			return api.Errorf(api.CodeConflict, "cp: %s: not a directory", dst).WithHint("an archive is extracted in a directory that exists")
		}
		r, line := d.counted(d.stdin, src, 0)
		defer line.clear()
		return d.client.WriteFiles(ctx, vm.ID, api.WriteFiles{Path: at.path, Archive: f.archive}, r)
	}
	follow := f.follow || src.dir
	info, err := archive.Stat(src.path, follow)
	if err != nil {
		return archive.Coded("cp", err)
	}
	parent, name, err := target(src, info.IsDir(), dst, at)
	if err != nil {
		return err
	}
	r := archived("cp", src.path, archive.WriteOptions{Follow: follow, Xattrs: f.archive})
	defer r.Close()
	total := info.Size()
	if !info.Mode().IsRegular() {
		total = 0
	}
	stream, line := d.counted(r, src, total)
	defer line.clear()
	return d.client.WriteFiles(ctx, vm.ID, api.WriteFiles{Path: parent, Name: name, Archive: f.archive}, stream)
}

// archived is the file or tree at path as an archive. One that could not be read to its end
// ends with an error, which begins with what was to be done: nothing comes of its last file.
func archived(doing, path string, o archive.WriteOptions) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		buf := bufio.NewWriterSize(w, streamBuffer)
		err := archive.Write(buf, path, o)
		if err == nil {
			err = buf.Flush()
		}
		w.CloseWithError(archive.Coded(doing, err))
	}()
	return r
}

// copyOut copies out of a VM.
func (d *deps) copyOut(ctx context.Context, src, dst place, f copyFlags) error {
	if out, ok := d.stdout.(*os.File); dst.std && ok && term.IsTerminal(int(out.Fd())) {
		return api.Errorf(api.CodeInvalid, "cp: an archive is not for a terminal").WithHint("banger vm cp %s - | tar t", src)
	}
	vm, err := d.client.VM(ctx, src.vm)
	if err != nil {
		return err
	}
	follow := f.follow || src.dir
	file, err := d.client.Stat(ctx, vm.ID, src.path, follow)
	if err != nil {
		return err
	}
	srcDir := file.Kind == api.FileDirectory
	parent, name, at := "", "", found{}
	if !dst.std {
		if at, err = findHere(dst.path); err != nil {
			return err
		}
	}
	if parent, name, err = target(src, srcDir, dst, at); err != nil {
		return err
	}
	q := api.ReadFiles{Path: src.path, Follow: follow}
	if dst.std && !src.contents {
		q.Name = src.base
	}
	files, err := d.client.ReadFiles(ctx, vm.ID, q)
	if err != nil {
		return err
	}
	defer files.Close()
	total := file.Size
	if file.Kind != api.FileRegular {
		total = 0
	}
	stream, line := d.counted(files, src, total)
	defer line.clear()
	if dst.std {
		_, err := io.CopyBuffer(struct{ io.Writer }{d.stdout}, stream, make([]byte, streamBuffer))
		return err
	}
	return archive.Coded("cp to "+dst.String(), extractHere(parent, name, stream, f.archive))
}

// findHere looks at the destination of a copy.
func findHere(name string) (found, error) {
	real, err := filepath.EvalSymlinks(name)
	if errors.Is(err, fs.ErrNotExist) {
		return found{}, nil
	}
	var info fs.FileInfo
	if err == nil {
		info, err = os.Stat(real)
	}
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return found{}, archive.Coded("cp", err)
	}
	return found{exists: true, dir: info.IsDir(), path: real}, nil
}

// extractHere extracts what a guest sent, which may be hostile, and touches nothing
// but name in the directory parent; without a name, what is in that.
func extractHere(parent, name string, r io.Reader, keep bool) (err error) {
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	o := archive.ExtractOptions{Name: name, Owners: keep && os.Geteuid() == 0, Room: func() (int64, error) { return linux.Room(dir) }}
	if !keep {
		umask := syscall.Umask(0)
		syscall.Umask(umask)
		o.Umask = fs.FileMode(umask)
	}
	return archive.Extract(root, bufio.NewReaderSize(r, streamBuffer), o)
}
