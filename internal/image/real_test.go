package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/bcrypt"

	"banger/api"
	"banger/internal/image"
)

// debianArchive is the archive of a root file system that mmdebstrap has made of
// Debian packages: that of the fixture's image.
func debianArchive(t *testing.T) []byte {
	t.Helper()
	fixture := os.Getenv("BANGER_FIXTURE")
	if fixture == "" {
		t.Skip("needs the fixture: make test")
	}
	kept, err := filepath.Glob(filepath.Join(fixture, "layers", "*", "archive"))
	check(t, err)
	if len(kept) != 1 {
		t.Fatalf("%d archives in the fixture", len(kept))
	}
	data, err := os.ReadFile(kept[0])
	check(t, err)
	return packed(t, data, "zstd", "-dc")
}

// corners is a layer for that image: what is below is replaced, removed, linked to,
// and everything is there that a file may have.
func corners(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	date := time.Unix(1_700_000_000, 987_654_321)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, h := range []tar.Header{
		{Name: "opt/a\nb", Size: 3}, {Name: "opt/" + strings.Repeat("n", 255), Size: 9}, {Name: "opt/\"q' \\", Size: 0}, {Name: "opt/\xff\xfe", Size: 5000},
		{Name: "opt/setuid", Mode: 0o6755, Uid: 1000, Gid: 3_000_000_000, Size: 4096},
		{Name: "opt/capable", Mode: 0o755, Size: 7, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}},
		{Name: "opt/hard", Typeflag: tar.TypeLink, Linkname: "opt/setuid"}, {Name: "opt/of-below", Typeflag: tar.TypeLink, Linkname: "etc/passwd"},
		{Name: "opt/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, {Name: "opt/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 300_000, Mode: 0o660},
		{Name: "opt/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, {Name: "opt/link", Typeflag: tar.TypeSymlink, Linkname: "../../../etc/" + strings.Repeat("x/", 100)},
		{Name: "opt/sticky/", Typeflag: tar.TypeDir, Mode: 0o1777, Gid: 42}, {Name: "etc/hostname", Mode: 0o600, Size: 11},
		{Name: "usr/share/.wh.doc"}, {Name: "var/cache/.wh..wh..opq"}, {Name: "var/cache/new", Size: 1}, {Name: "lib/through-the-link", Size: 2},
	} {
		h.Format, h.ModTime = tar.FormatPAX, date
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		check(t, w.WriteHeader(&h))
		_, err := w.Write(bytes.Repeat([]byte("c"), int(h.Size)))
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

// ociLayout writes an image of layers as an OCI Image Layout, under the tag it.
func ociLayout(t *testing.T, layers ...[]byte) (dir string) {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	check(t, err)
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, data := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
			tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
		check(t, err)
		img, err = mutate.AppendLayers(img, layer)
		check(t, err)
	}
	dir = filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	check(t, err, p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "it"})))
	return dir
}

// dockerRegistry runs Debian's docker-registry with TLS and a password, and returns its
// address; its certificate is ca.crt in the directory.
func dockerRegistry(t *testing.T, user, password string) (host, dir string) {
	t.Helper()
	dir = t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	secret, err := x509.MarshalECPrivateKey(key)
	check(t, err)
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	host = l.Addr().String()
	check(t, l.Close(),
		os.WriteFile(at("ca.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(at("key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600),
		os.WriteFile(at("htpasswd"), fmt.Appendf(nil, "%s:%s\n", user, hash), 0o600),
		os.WriteFile(at("config.yml"), fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q, tls: {certificate: %q, key: %q}}
auth: {htpasswd: {realm: here, path: %q}}
`, at("blobs"), host, at("ca.crt"), at("key.pem"), at("htpasswd")), 0o600))
	cmd := exec.Command("docker-registry", "serve", at("config.yml"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the registry said: %s", said.String())
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", host)
		if err == nil {
			conn.Close()
			return host, dir
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// TestPullFromDockersRegistry pushes an image of Debian packages, with a layer of
// corner cases on it, with skopeo to the distribution's registry, pulls it, and
// compares every inode with what umoci unpacks.
func TestPullFromDockersRegistry(t *testing.T) {
	base := debianArchive(t)
	oci := ociLayout(t, base, corners(t))
	host, dir := dockerRegistry(t, "ann", "secret")
	t.Setenv("SSL_CERT_FILE", filepath.Join(dir, "ca.crt"))
	must(t, "", "skopeo", "copy", "-q", "--dest-creds=ann:secret", "--dest-cert-dir="+dir, "oci:"+oci+":it", "docker://"+host+"/deb:1")
	m, _, _ := newManager(t)
	m.MaxSize, m.MaxEntries = 4<<30, 200_000
	ref := host + "/deb:1"
	for _, auth := range []*api.RegistryAuth{nil, {Username: "ann", Password: "guess"}} {
		if _, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref, Auth: auth}, nil); api.CodeOf(err) != api.CodePermissionDenied {
			t.Errorf("as %+v: %v", auth, err)
		}
	}
	img, err := m.Pull(t.Context(), 0, api.PullImage{Ref: ref, Auth: &api.RegistryAuth{Username: "ann", Password: "secret"}}, nil)
	check(t, err)
	bundle := filepath.Join(t.TempDir(), "bundle")
	must(t, "", "umoci", "unpack", "--image", oci+":it", bundle)
	disks, err := m.Disks(t.Context(), img.ID)
	check(t, err)
	want, got := describe(t, filepath.Join(bundle, "rootfs")), describe(t, image.Mounted(t, disks...))
	differ(t, want, got, "opt/of-below", "etc/passwd") // one file there, two of the same content here: the links of two layers
	if len(want) < 5000 {
		t.Errorf("%d inodes only", len(want))
	}
}

// TestImportOfDebian compares every inode of an image of Debian packages with what tar
// makes of its archive.
func TestImportOfDebian(t *testing.T) { compare(t, debianArchive(t)) }

// differ compares the descriptions of two trees; of some files not the number of links.
func differ(t *testing.T, want, got map[string]string, linked ...string) {
	t.Helper()
	unlinked := func(text string) string {
		before, after, _ := strings.Cut(text, " links ")
		_, after, _ = strings.Cut(after, " ")
		return before + " " + after
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		if slices.Contains(linked, name) {
			w, g = unlinked(w), unlinked(g)
		}
		if w != g {
			t.Errorf("%q:\n got  %s\n want %s", name, g, w)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%q: only we make it", name)
	}
}
