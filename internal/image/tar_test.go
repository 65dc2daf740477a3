package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// must runs a program.
func must(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

var longName = strings.Repeat("n", 255)

// awkwardTree makes one of everything that a root file system may have.
func awkwardTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, size := range map[string]int{"empty": 0, "short": 7, "block": 4096, "more": 4097, "big": 3 << 20,
		"a\nb": 1, `"quoted' \`: 2, "\xff\xfe": 3, longName: 4, " ": 5} {
		check(t, os.WriteFile(at(name), bytes.Repeat([]byte{'x'}, size), 0o644))
	}
	check(t, os.WriteFile(at("capable"), []byte("x"), 0o755), os.WriteFile(at("setuid"), []byte("x"), 0o755),
		os.MkdirAll(at("usr/lib/deep/er"), 0o755), os.Mkdir(at("tmp"), 0o777), os.Mkdir(at("shared"), 0o755), os.Mkdir(at("secret"), 0o700),
		os.Symlink("usr/lib", at("lib")), os.Symlink("/etc/"+strings.Repeat("long/", 100), at("long-link")), os.Symlink("../../nowhere", at("dangling")),
		os.Link(at("big"), at("usr/lib/hard")), os.Link(at("big"), at("usr/lib/deep/harder")),
		syscall.Mkfifo(at("fifo"), 0o600), syscall.Mknod(at("null"), syscall.S_IFCHR|0o666, 1<<8|3),
		syscall.Mknod(at("disk"), syscall.S_IFBLK|0o660, 259&0xfff<<8|int(300_000&0xff)|300_000>>8<<20),
		os.Chown(at("setuid"), 0, 42), os.Chmod(at("setuid"), os.ModeSetuid|os.ModeSetgid|0o755),
		os.Chmod(at("tmp"), os.ModeSticky|0o777), os.Chown(at("shared"), 1000, 3_000_000_000), os.Chmod(at("shared"), os.ModeSetgid|0o2775),
		os.Lchown(at("lib"), 1000, 1000), os.Chown(at("short"), 65534, 65534), os.Chmod(at("short"), 0),
		syscall.Setxattr(at("capable"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		syscall.Setxattr(at("secret"), "security.banger", []byte("of a directory"), 0),
		syscall.Setxattr(at("more"), "security.large", bytes.Repeat([]byte("v"), 2000), 0))
	for i := range 1500 {
		check(t, os.WriteFile(at(fmt.Sprintf("usr/lib/deep/er/%d", i)), []byte{byte(i)}, 0o644))
	}
	sparse, err := os.Create(at("sparse"))
	check(t, err, sparse.Truncate(12<<20))
	_, err = sparse.WriteAt([]byte("far away"), 9<<20)
	check(t, err, sparse.Close())
	for name, date := range map[string]time.Time{"empty": time.Unix(0, 0), "short": time.Unix(1_700_000_000, 123_456_789),
		"tmp": time.Unix(915_148_800, 1), "block": time.Unix(2_000_000_000, 999_999_999)} {
		check(t, os.Chtimes(at(name), date, date))
	}
	return dir
}

// describe gives what can be seen of each file below dir, by path. Dates are left
// out for those that undated names.
func describe(t *testing.T, dir string, undated ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if name == "lost+found" {
			return fs.SkipDir
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("mode %o owner %d:%d rdev %x", st.Mode, st.Uid, st.Gid, st.Rdev)
		if !slices.Contains(undated, name) {
			text += fmt.Sprintf(" mtime %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		if !d.IsDir() {
			text += fmt.Sprintf(" size %d links %d", st.Size, st.Nlink)
		}
		switch d.Type() {
		case 0:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" content %x", sha256.Sum256(content))
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + target
		}
		if d.Type() == 0 || d.IsDir() {
			text += xattrs(t, path)
		}
		all[name] = text
		return nil
	}))
	return all
}

func xattrs(t *testing.T, path string) (text string) {
	t.Helper()
	list, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := syscall.Listxattr(path, list)
	check(t, err)
	names := strings.Split(string(list[:n]), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := syscall.Getxattr(path, name, value)
		check(t, err)
		text += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return text
}

// mountImage imports an archive and mounts its layer, read-only, for the test.
func mountImage(t *testing.T, archive []byte) string {
	t.Helper()
	m, _, _ := newManager(t)
	m.MaxSize, m.MaxEntries = 1<<30, 100_000
	img, err := m.Import(t.Context(), 0, "it", bytes.NewReader(archive), nil)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := m.Disks(t.Context(), img.ID)
	check(t, err)
	// It asks about each fault. The padding is outside of what there is to map.
	out, _ := exec.Command("e2fsck", "-fn", disks[0]).Output()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "? no") && !strings.HasPrefix(line, "Padding at end of inode bitmap is not set") {
			t.Errorf("e2fsck: %s", line)
		}
	}
	dir := t.TempDir()
	must(t, "", "mount", "-o", "loop,ro,noload", disks[0], dir)
	t.Cleanup(func() { must(t, "", "umount", dir) })
	return dir
}

// compare imports an archive and has tar -x unpack it as root.
func compare(t *testing.T, archive []byte, undated ...string) {
	t.Helper()
	unpacked := t.TempDir()
	file := filepath.Join(t.TempDir(), "archive.tar")
	check(t, os.Chmod(unpacked, 0o755), os.WriteFile(file, archive, 0o600))
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	must(t, unpacked, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-pxf", file)
	want, got := describe(t, unpacked, undated...), describe(t, mountImage(t, archive), undated...)
	differ(t, want, got)
}

func TestImportIsWhatTarMakes(t *testing.T) {
	dir := awkwardTree(t)
	for name, args := range map[string][]string{
		"posix":      {"--format=posix", "--xattrs", "--xattrs-include=*"},
		"sparse 1.0": {"--format=posix", "-S"},
		"sparse 0.1": {"--format=posix", "-S", "--sparse-version=0.1"},
		"gnu":        {"--format=gnu"},
		"gnu sparse": {"--format=gnu", "-S"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.tar")
			must(t, dir, "tar", append(args, "--numeric-owner", "-cf", file, ".")...)
			archive, err := os.ReadFile(file)
			check(t, err)
			compare(t, archive)
		})
	}
}

// TestUnusualArchives has what archivers make when they are given lists of files, or
// archives to add to.
func TestUnusualArchives(t *testing.T) {
	date := time.Unix(1_600_000_000, 0)
	dir := func(name string, mode int64) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: date}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Size: 5000, Mode: 0o600, ModTime: date} }
	link := func(kind byte, name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Linkname: to, ModTime: date, Mode: 0o777}
	}
	marked := dir("d/", 0o711)
	marked.PAXRecords = map[string]string{"SCHILY.xattr.user.first": "1"}
	marked2 := dir("d/", 0o722)
	marked2.Uid, marked2.PAXRecords = 7, map[string]string{"SCHILY.xattr.user.second": "2"}
	for name, c := range map[string]struct {
		entries []tar.Header
		undated []string
	}{
		"parents that are not in it":   {[]tar.Header{dir("tmp/", 0o1777), file("tmp/a/b/c"), file("x/y")}, []string{"tmp/a", "tmp/a/b", "x", "."}},
		"a parent after its child":     {[]tar.Header{file("d/f"), dir("d/", 0o700)}, []string{"."}},
		"a directory twice":            {[]tar.Header{marked, file("d/f"), marked2}, []string{"."}},
		"below a symbolic link":        {[]tar.Header{dir("usr/lib/", 0o755), link(tar.TypeSymlink, "lib", "usr/lib"), file("lib/f"), file("lib/new/f")}, []string{"usr", "usr/lib", "usr/lib/new", "."}},
		"below two symbolic links":     {[]tar.Header{dir("a/b/", 0o755), link(tar.TypeSymlink, "a/c", "./b/"), link(tar.TypeSymlink, "l", "a/c"), file("l/f")}, []string{"a", "a/b", "."}},
		"hard link via a link":         {[]tar.Header{dir("usr/", 0o755), link(tar.TypeSymlink, "u", "usr"), file("usr/f"), link(tar.TypeLink, "u/g", "u/f"), link(tar.TypeLink, "h", "usr/g")}, []string{"usr", "."}},
		"hard link to a symbolic link": {[]tar.Header{link(tar.TypeSymlink, "s", "nowhere"), link(tar.TypeLink, "t", "s")}, []string{"."}},
		"dots in the names":            {[]tar.Header{dir("./", 0o751), file("./a"), file("b/./c"), file("b//d")}, []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) { compare(t, archive(t, c.entries...), c.undated...) })
	}
}

// TestDatesAreClamped has dates that the writer of the file system gets wrong.
func TestDatesAreClamped(t *testing.T) {
	dir := mountImage(t, archive(t, tar.Header{Name: "old", ModTime: time.Unix(-1, 0), Format: tar.FormatPAX},
		tar.Header{Name: "new", ModTime: time.Unix(1<<32, 0), Format: tar.FormatPAX}))
	for name, want := range map[string]int64{"old": 0, "new": 1<<31 - 1} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.ModTime().Unix() != want {
			t.Errorf("%s: %v, %v", name, info.ModTime().Unix(), err)
		}
	}
}
