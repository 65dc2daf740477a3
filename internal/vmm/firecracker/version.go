package firecracker

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"banger/api"
)

// programDir is where packages put the programs; see hint.
const programDir = "/usr/lib/banger"

// hint says where the programs may lie.
const hint = "put the programs firecracker and jailer of one release, 1.12 or newer, into " + programDir +
	" or a directory of PATH, or name them in the configuration (firecracker.binary, firecracker.jailer)"

// version is that of a release.
type version struct{ major, minor, patch int }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func (v version) before(minor int) bool { return v.major < 1 || v.major == 1 && v.minor < minor }

var versionWord = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(-[0-9A-Za-z.-]+)?$`)

func parseVersion(word string) (version, error) {
	m := versionWord.FindStringSubmatch(word)
	if m == nil {
		return version{}, fmt.Errorf("%q is no version", word)
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // digits, few
	}
	return version{n[0], n[1], n[2]}, nil
}

// The versions that the driver knows.
const oldest, newest = 12, 16

// features is what versions differ in.
type features struct {
	pci           bool // --enable-pci
	serialLimit   bool // PUT /serial takes rate_limiter
	mtu           bool // network-interfaces take mtu
	vsockOverride bool // snapshot/load takes vsock_override
	// gatedResume says that after a bare pause the guest gets no more packets by vsock:
	// the device waits for the answer to a reset that only a snapshot sends.
	gatedResume bool
}

// features returns those of a version; the error says why it cannot be used.
func (v version) features() (features, error) {
	switch {
	case v.before(oldest):
		return features{}, fmt.Errorf("version %s is older than 1.%d: it cannot give a restored machine another network device", v, oldest)
	case v.major > 1:
		return features{}, fmt.Errorf("version %s is not known: its API is another one", v)
	}
	return features{
		pci: !v.before(13), serialLimit: !v.before(16), mtu: !v.before(16), vsockOverride: !v.before(16),
		gatedResume: v.major == 1 && v.minor == 16 && v.patch <= 1,
	}, nil
}

// program is a file that is executed.
type program struct {
	path    string
	version version
	digest  string // SHA-256, in hexadecimal
	stat    os.FileInfo
}

// current says whether the file at the path is still the same.
func (p program) current() bool {
	now, err := os.Stat(p.path)
	return err == nil && p.stat != nil && os.SameFile(now, p.stat) && now.Size() == p.stat.Size() && now.ModTime().Equal(p.stat.ModTime())
}

// find returns the path of a program: what the configuration says, or what is beside
// another program, in our directory for them, or in PATH.
func find(name, configured, beside string) (string, error) {
	if configured != "" {
		return exec.LookPath(configured)
	}
	for _, dir := range []string{beside, programDir} {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path, nil // one that is no program is told of
		}
	}
	return exec.LookPath(name)
}

// identify finds out what a program is, which is to call itself name.
func identify(ctx context.Context, path, name string) (program, error) {
	path, err := filepath.EvalSymlinks(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return program{}, err
	}
	p := program{path: path}
	f, err := os.Open(path)
	if err != nil {
		return p, err
	}
	defer f.Close()
	if p.stat, err = f.Stat(); err != nil {
		return p, err
	}
	if !p.stat.Mode().IsRegular() || p.stat.Mode()&0o111 == 0 {
		return p, wrong(path, "it is no file that can be executed")
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return p, err
	}
	p.digest = hex.EncodeToString(hash.Sum(nil))
	if why := broken(f, p.stat.Size()); why != "" {
		return p, wrong(path, why+" (SHA-256 "+p.digest+")")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env, cmd.WaitDelay = []string{}, time.Second
	out, err := cmd.Output()
	if err != nil {
		return p, wrong(path, fmt.Sprintf("--version: %v (SHA-256 %s)", err, p.digest))
	}
	first, _, _ := strings.Cut(string(out), "\n")
	word, ok := strings.CutPrefix(first, name+" ")
	if ok {
		p.version, err = parseVersion(strings.TrimSpace(word))
	}
	if !ok || err != nil {
		return p, wrong(path, fmt.Sprintf("--version says %.80q, not %s and a version", first, name))
	}
	return p, nil
}

// broken says why a file is no whole program; empty where it is one.
func broken(f *os.File, size int64) string {
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Sprintf("it is no ELF program, or was cut off: %v", err)
	}
	for _, p := range e.Progs {
		if p.Filesz > uint64(size) || p.Off > uint64(size)-p.Filesz {
			return fmt.Sprintf("it was cut off: it has %d bytes, and a segment that ends at %d", size, p.Off+p.Filesz)
		}
	}
	return ""
}

func wrong(path, why string) error {
	return api.Errorf(api.CodeUnavailable, "look at %s: %s", path, why).WithHint(hint)
}
