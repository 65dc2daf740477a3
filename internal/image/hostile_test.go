package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"banger/api"
)

// packed runs a compressor of the system.
func packed(t *testing.T, data []byte, command ...string) []byte {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	check(t, err)
	return out
}

// replaced is an archive with the field at offset of its first header changed, and
// the header's checksum put right.
func replaced(archive []byte, offset int, field string) []byte {
	archive = bytes.Clone(archive)
	copy(archive[offset:], field)
	copy(archive[148:156], "        ")
	sum := 0
	for _, b := range archive[:512] {
		sum += int(b)
	}
	octal := []byte("000000\x00 ")
	for i := 5; i >= 0; i, sum = i-1, sum>>3 {
		octal[i] = byte('0' + sum&7)
	}
	copy(archive[148:], octal)
	return archive
}

// state is the names of all files of an installation; those of the database vary.
func state(t *testing.T, dir string) (names []string) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if !strings.HasPrefix(filepath.Base(path), "banger.db") {
			names = append(names, path)
		}
		return err
	}))
	return names
}

type hostile struct {
	archive []byte
	says    []string // in the message
}

func hostileNames(t *testing.T) map[string]hostile {
	t.Helper()
	good, dir := tar.Header{Name: "etc/good", Size: 10}, tar.Header{Name: "d/", Typeflag: tar.TypeDir}
	link := func(kind byte, name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Linkname: to}
	}
	raw := func(name string) []byte { return replaced(archive(t, tar.Header{Name: "placeholder"}), 0, name+"\x00") }
	return map[string]hostile{
		"absolute path":        {archive(t, good, tar.Header{Name: "/abs/file"}), []string{`"/abs/file"`, "absolute"}},
		"parent path":          {archive(t, good, tar.Header{Name: "a/../../evil"}), []string{`"a/../../evil"`, `".."`}},
		"parent path alone":    {archive(t, good, tar.Header{Name: ".."}), []string{`entry ".."`}},
		"no name":              {raw(""), []string{`entry ""`, "empty name"}},
		"long component":       {archive(t, good, tar.Header{Name: "x/" + strings.Repeat("n", 256)}), []string{"nnn", "255"}},
		"long path":            {archive(t, good, tar.Header{Name: strings.Repeat("ppppppp/", 600) + "f"}), []string{"ppp/", "4096"}},
		"deep path":            {archive(t, good, tar.Header{Name: strings.Repeat("p/", 257) + "f"}), []string{"p/p/", "256 directories"}},
		"NUL in a path":        {paxSparse(t, map[string]string{"path": "a\x00b"}), []string{"not a tar archive"}},
		"a name of a megabyte": {archive(t, good, tar.Header{Name: strings.Repeat("m", 900_000)}), []string{"mmm"}},
		"NUL in a name":        {archive(t, good, tar.Header{Name: "pax", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "\x00"}}, tar.Header{Name: "/after"}), []string{"/after"}},
		"no link target":       {archive(t, good, link(tar.TypeSymlink, "s", "")), []string{`"s"`, "target"}},
		"long link target":     {archive(t, good, link(tar.TypeSymlink, "s", strings.Repeat("t", 4096))), []string{`"s"`, "target"}},
		"hard link outside":    {archive(t, good, link(tar.TypeLink, "l", "../../etc/shadow")), []string{`"l"`, "../../etc/shadow"}},
		"hard link absolute":   {archive(t, good, link(tar.TypeLink, "l", "/etc/shadow")), []string{`"l"`, "absolute"}},
		"hard link to none":    {archive(t, good, link(tar.TypeLink, "l", "nowhere")), []string{`"l"`, "nowhere"}},
		"hard link to itself":  {archive(t, good, link(tar.TypeLink, "l", "l")), []string{`"l"`}},
		"hard link to a dir":   {archive(t, dir, link(tar.TypeLink, "l", "d")), []string{`"l"`, "directory"}},
		"file below a file":    {archive(t, good, tar.Header{Name: "etc/good/below"}), []string{"etc/good/below", "not a directory"}},
		"below a link up":      {archive(t, dir, link(tar.TypeSymlink, "d/s", "../.."), tar.Header{Name: "d/s/f"}), []string{`"d/s/f"`, `"../.."`}},
		"below an absolute link": {archive(t, link(tar.TypeSymlink, "s", "/etc"), tar.Header{Name: "s/passwd"}),
			[]string{`"s/passwd"`, `"/etc"`}},
		"below a dangling link": {archive(t, link(tar.TypeSymlink, "s", "gone"), tar.Header{Name: "s/f"}), []string{`"s/f"`, "gone"}},
		"links in a circle":     {archive(t, link(tar.TypeSymlink, "s", "r"), link(tar.TypeSymlink, "r", "s"), tar.Header{Name: "s/f"}), []string{`"s/f"`, "too many"}},
		"a file twice":          {archive(t, good, good), []string{`"etc/good"`, "twice"}},
		"a link over a file":    {archive(t, good, link(tar.TypeLink, "etc/good", "etc/good")), []string{`"etc/good"`, "twice"}},
		"a directory over a link": {archive(t, link(tar.TypeSymlink, "d", "e"), dir),
			[]string{`"d/"`, "twice"}},
		"whiteout device":    {archive(t, good, tar.Header{Name: "w", Typeflag: tar.TypeChar}), []string{`"w"`, "0:0"}},
		"device number":      {archive(t, good, tar.Header{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 4096}), []string{`"dev"`, "device number"}},
		"owner":              {archive(t, good, tar.Header{Name: "o", Uid: 1 << 32}), []string{`"o"`, "owner"}},
		"type":               {archive(t, good, tar.Header{Name: "odd", Typeflag: 'Z'}), []string{`"odd"`, "type"}},
		"overlay attribute":  {archive(t, tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}}), []string{`"x"`, "trusted"}},
		"attribute too long": {archive(t, tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("y", 5000)}}), []string{`"x"`, "user.a"}},
		"attributes of a directory twice": {archive(t,
			tar.Header{Name: "d/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("y", 500)}}, dir), []string{`"d/"`, "attributes"}},
	}
}

func hostileSizes(t *testing.T) map[string]hostile {
	t.Helper()
	good, tail := tar.Header{Name: "etc/good", Size: 10}, tar.Header{Name: "tail", Size: 4096}
	many := make([]tar.Header, 200)
	for i := range many {
		many[i].Name = "f" + strings.Repeat("x", i)
	}
	pax := map[string]string{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes", "GNU.sparse.realsize": "9000000000000"}
	whole := archive(t, good, tail)
	cut := whole[:len(whole)-1024-512] // within tail
	return map[string]hostile{
		"size bomb":              {archive(t, good, tar.Header{Name: "bomb", Size: 2 << 20}), []string{`"bomb"`, "bytes of content"}},
		"size bomb in parts":     {archive(t, tar.Header{Name: "a", Size: 600_000}, tar.Header{Name: "b", Size: 600_000}), []string{`"b"`, "bytes of content"}},
		"a size that it has not": {replaced(archive(t, tar.Header{Name: "liar"}), 124, "77777777777\x00"), []string{`"liar"`, "bytes of content"}},
		"a sparse bomb":          {paxSparse(t, pax), []string{`"holes"`, "bytes of content"}},
		"inode bomb":             {archive(t, many...), []string{`"fx`, "100 entries"}},
		"inode bomb of parents":  {archive(t, good, tar.Header{Name: strings.Repeat("p/", 200) + "f"}), []string{`"p/p/`, "100 entries"}},
		"truncated":              {cut, []string{"truncated", `"tail"`}},
		"no end mark":            {whole[:len(whole)-1024], []string{"truncated", `"tail"`}},
		"truncated gzip":         {half(packed(t, noise(t), "gzip")), []string{"truncated"}},
		"truncated zstd":         {half(packed(t, noise(t), "zstd", "-q")), []string{"truncated"}},
		"truncated xz":           {half(packed(t, noise(t), "xz")), []string{"truncated"}},
		"gzip of truncated":      {packed(t, cut, "gzip"), []string{"truncated", `"tail"`}},
		"damaged gzip":           {damaged(packed(t, whole, "gzip")), []string{"corrupt"}},
		"damaged xz":             {damaged(packed(t, whole, "xz")), []string{"corrupt"}},
		"garbage behind":         {append(bytes.Clone(whole), "garbage"...), []string{"behind its end", `"tail"`}},
		"an archive behind":      {append(bytes.Clone(whole), whole...), []string{"behind its end", `"tail"`}},
		"garbage behind gzip":    {append(packed(t, whole, "gzip"), bytes.Repeat([]byte("garbage"), 99)...), []string{"corrupt", `"tail"`}},
		"damaged header":         {damagedHeader(whole), []string{"corrupt", `"etc/good"`}},
		"a text":                 {bytes.Repeat([]byte("hello "), 1000), []string{"not a tar archive"}},
		"a short text":           {[]byte("hello"), []string{"not a tar archive"}},
		"a short text, gzip":     {packed(t, []byte("hello"), "gzip"), []string{"truncated"}},
		"nothing in it":          {archive(t), []string{"empty"}},
		"no bytes":               {nil, []string{"empty"}},
		"half a gzip header":     {[]byte("\x1f\x8b\x08\x00"), []string{"truncated"}},
		"xz of 4 GiB memory":     {[]byte("\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x28\x00\x00\x00\xe6\xa0\x11\xb3"), []string{"memory"}},
	}
}

func half(b []byte) []byte { return b[:len(b)/2] }

// noise is an archive with a file that does not compress, so that half of it is cut
// within the data.
func noise(t *testing.T) []byte {
	t.Helper()
	out := archive(t, tar.Header{Name: "noise", Size: 100_000})
	x := uint32(1)
	for i := range 100_000 {
		x = x*1664525 + 1013904223
		out[512+i] = byte(x >> 24)
	}
	return out
}

func damaged(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-6] ^= 0xff
	return b
}

func damagedHeader(b []byte) []byte {
	b = bytes.Clone(b)
	b[512+512+100] ^= 1 // the mode of the second entry
	return b
}

// paxSparse is an archive with one file whose PAX records, which archive/tar does not
// write, are as given.
func paxSparse(t *testing.T, records map[string]string) []byte {
	t.Helper()
	var body strings.Builder
	for key, value := range records {
		n := len(key) + len(value) + 3
		for n != len(key)+len(value)+3+len(strconv.Itoa(n)) {
			n = len(key) + len(value) + 3 + len(strconv.Itoa(n))
		}
		body.WriteString(strconv.Itoa(n) + " " + key + "=" + value + "\n")
	}
	head := archive(t, tar.Header{Name: "PaxHeaders/holes", Size: int64(body.Len())})
	head = replaced(head, 156, "x")
	copy(head[512:], body.String())
	file := archive(t, tar.Header{Name: "GNUSparseFile/holes", Size: 512})
	copy(file[512:], "0\n")
	return append(head[:len(head)-1024], file...)
}

func TestHostileArchives(t *testing.T) {
	for _, table := range []map[string]hostile{hostileNames(t), hostileSizes(t)} {
		for name, test := range table {
			t.Run(name, func(t *testing.T) {
				m, db, dir := newManager(t)
				if _, err := m.Import(t.Context(), 0, "before", bytes.NewReader(archive(t, tar.Header{Name: "f"})), nil); err != nil {
					t.Fatal(err)
				}
				before, rows := state(t, dir), leftovers(t, db, dir)
				_, err := m.Import(t.Context(), 0, "bad", bytes.NewReader(test.archive), nil)
				if err == nil || api.CodeOf(err) != api.CodeInvalid || strings.Contains(err.Error(), "\n") || len(err.Error()) > 1500 {
					t.Fatalf("got %v, want an invalid archive", err)
				}
				for _, says := range test.says {
					if !strings.Contains(err.Error(), says) {
						t.Errorf("%q does not say %q", err, says)
					}
				}
				if after := state(t, dir); !slices.Equal(before, after) || leftovers(t, db, dir) != rows {
					t.Errorf("it left %q where there was %q", after, before)
				}
			})
		}
	}
}

// TestFullDisk has an archive that is larger than the file system of the state
// directory, and less of a limit than that.
func TestFullDisk(t *testing.T) {
	m, db, dir := newManager(t)
	m.MaxSize = 1 << 30
	check(t, os.MkdirAll(filepath.Join(dir, "layers"), 0o711))
	must(t, "", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", filepath.Join(dir, "layers"))
	t.Cleanup(func() { must(t, "", "umount", filepath.Join(dir, "layers")) })
	var big bytes.Buffer
	z := gzip.NewWriter(&big)
	w := tar.NewWriter(z)
	check(t, w.WriteHeader(&tar.Header{Name: "big", Size: 4 << 20, Mode: 0o644}))
	_, err := w.Write(bytes.Repeat([]byte("full"), 1<<20))
	check(t, err, w.Close(), z.Close())
	if _, err := m.Import(t.Context(), 0, "big", &big, nil); api.CodeOf(err) != api.CodeNoSpace {
		t.Errorf("got %v", err)
	}
	if n := leftovers(t, db, dir); n != 0 {
		t.Errorf("%d rows and directories are left", n)
	}
}
