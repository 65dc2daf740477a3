package kernel

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

// modprobes mounts a disk of modules where a guest has it, and has modprobe(8) look up
// names and aliases by its index: the answer must contain what is wanted.
func modprobes(t *testing.T, disk, release string, wanted map[string]string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,ro,noload", disk, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer func() {
		if err := exec.Command("umount", dir).Run(); err != nil {
			t.Error("umount:", err)
		}
	}()
	for _, index := range []string{"dep", "dep.bin", "alias", "alias.bin", "symbols", "symbols.bin", "softdep", "builtin", "builtin.bin"} {
		if info, err := os.Stat(filepath.Join(dir, release, "modules."+index)); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("modules.%s: %v", index, err)
		}
	}
	for name, want := range wanted {
		out, err := exec.Command("modprobe", "-d", root, "-S", release, "--show-depends", name).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("modprobe %s: %v: %s", name, err, out)
		}
	}
}

func TestModulesAreIndexed(t *testing.T) {
	m, _, _ := newManager(t)
	files := kernelFiles()
	lib := "./lib/modules/" + release + "/kernel/"
	files[lib+"odd.ko"] = module("depends=virtio", "alias=pci:v00001AF4d*sv*sd*bc*sc*i*")
	files[lib+"packed.ko.xz"] = string(compressed(t, ".xz", []byte(module("depends="))))
	k, err := m.Import(t.Context(), "mine", bytes.NewReader(kernelDeb(t, files)), noReport)
	if err != nil {
		t.Fatal(err)
	}
	modprobes(t, filepath.Join(m.Dirs.Path(k.Dir), "modules.ext4"), release,
		map[string]string{"virtio": "/virtio.ko", "pci:v00001AF4d0001sv1sd1bc1sc1i1": "/odd.ko", "packed": "/packed.ko.xz"})
}

// packageManager answers as apt-cache does, from captured output; what it was not
// captured for is unknown to it.
type packageManager map[string]string

func (p packageManager) run(_ context.Context, _, program string, args ...string) ([]byte, error) {
	command := strings.Join(append([]string{program}, args...), " ")
	if out, ok := p[command]; ok {
		return []byte(out), nil
	}
	return nil, api.Errorf(api.CodeUnavailable, "%s: exit status 100: E: No packages found", command)
}

var (
	debian12 = packageManager{
		"apt-cache depends linux-image-cloud-amd64": `linux-image-cloud-amd64
  Depends: linux-image-6.1.0-41-cloud-amd64
`,
		"apt-cache depends linux-image-6.1.0-41-cloud-amd64": `linux-image-6.1.0-41-cloud-amd64
  Depends: kmod
  Depends: linux-base
 |Depends: initramfs-tools
  Depends: <linux-initramfs-tool>
    dracut
    initramfs-tools
  Conflicts: linux-image-6.1.0-41-cloud-amd64-unsigned
  Suggests: linux-doc-6.1
`,
		"apt-cache show --no-all-versions linux-image-6.1.0-41-cloud-amd64": `Package: linux-image-6.1.0-41-cloud-amd64
Source: linux-signed-amd64 (6.1.158+1)
Version: 6.1.158-1
Built-Using: linux (= 6.1.158-1)
Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool
`,
	}
	ubuntu2404 = packageManager{
		"apt-cache depends linux-image-virtual": `linux-image-virtual
  Depends: linux-image-6.8.0-90-generic
`,
		"apt-cache depends linux-image-6.8.0-90-generic": `linux-image-6.8.0-90-generic
  Depends: kmod
  Depends: linux-base
  Depends: linux-modules-6.8.0-90-generic
  Conflicts: linux-image-unsigned-6.8.0-90-generic
 |Recommends: grub-pc
 |Recommends: grub-efi-amd64
  Recommends: grub
 |Recommends: initramfs-tools
  Recommends: <linux-initramfs-tool>
    dracut
    initramfs-tools
  Suggests: fdutils
 |Suggests: linux-doc
  Suggests: <linux-source-6.8.0>
    linux-source-6.8.0
  Suggests: linux-tools
  Suggests: linux-headers-6.8.0-90-generic
  Suggests: linux-modules-extra-6.8.0-90-generic
`,
		"apt-cache show --no-all-versions linux-image-6.8.0-90-generic": `Package: linux-image-6.8.0-90-generic
Architecture: amd64
Version: 6.8.0-90.91
Built-Using: linux (= 6.8.0-90.91)
Depends: kmod, linux-base (>= 4.5ubuntu1~16.04.1), linux-modules-6.8.0-90-generic
`,
	}
)

func TestChoiceOfPackages(t *testing.T) {
	for name, c := range map[string]struct {
		apt      packageManager
		offer    offer
		packages []string
	}{
		"Debian 12": {debian12, offer{"linux-image-6.1.0-41-cloud-amd64", "6.1.0-41-cloud-amd64", "6.1.158-1"},
			[]string{"linux-image-6.1.0-41-cloud-amd64=6.1.158-1"}},
		"Ubuntu 24.04": {ubuntu2404, offer{"linux-image-6.8.0-90-generic", "6.8.0-90-generic", "6.8.0-90.91"},
			[]string{"linux-image-6.8.0-90-generic=6.8.0-90.91", "linux-modules-6.8.0-90-generic"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := newest(t.Context(), c.apt.run)
			if err != nil || got != c.offer {
				t.Errorf("offer: got %+v, %v", got, err)
			}
			packages, err := parts(t.Context(), c.offer, c.apt.run)
			if err != nil || !slices.Equal(packages, c.packages) {
				t.Errorf("packages: got %q, %v", packages, err)
			}
		})
	}
	if _, err := newest(t.Context(), packageManager{}.run); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("nothing on offer: got %v", err)
	}
}

// TestSplitPackage imports what Ubuntu has in two packages.
func TestSplitPackage(t *testing.T) {
	image, modules := map[string]string{}, map[string]string{}
	for name, content := range kernelFiles() {
		if strings.HasPrefix(name, "./boot/") {
			image[name] = content
		} else {
			modules[name] = content
		}
	}
	dir := t.TempDir()
	for name, files := range map[string]map[string]string{"image.deb": image, "modules.deb": modules} {
		if err := os.WriteFile(filepath.Join(dir, name), kernelDeb(t, files), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	work, out := t.TempDir(), t.TempDir()
	packages, err := openAll(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := assemble(t.Context(), packages, out, work)
	if err != nil || got != release {
		t.Errorf("got %q, %v", got, err)
	}
	for _, p := range packages {
		p.Close()
	}
}

func TestRebuiltPackageIsNoticed(t *testing.T) {
	m, db, _ := newManager(t)
	first := offer{"linux-image-6.1.0-41-cloud-amd64", "6.1.0-41-cloud-amd64", "6.1.158-1"}
	rebuilt := first
	rebuilt.version = "1:6.1.158-1~bpo"
	if name, made, err := m.nameFor(t.Context(), first); err != nil || made != nil || name != first.release {
		t.Errorf("the first one: %q, %v, %v", name, made, err)
	}
	db.kernels = append(db.kernels, Kernel{Name: first.release, Source: first.source()})
	if _, made, err := m.nameFor(t.Context(), first); err != nil || made == nil || made.Name != first.release {
		t.Errorf("the same again: %v, %v", made, err)
	}
	name, made, err := m.nameFor(t.Context(), rebuilt)
	if err != nil || made != nil || name != "6.1.0-41-cloud-amd64+1.6.1.158-1.bpo" || !validName.MatchString(name) {
		t.Errorf("rebuilt: %q, %v, %v", name, made, err)
	}
}
