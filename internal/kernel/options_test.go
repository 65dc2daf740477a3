package kernel

import (
	"bytes"
	"compress/gzip"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

// config is a configuration that has all that is needed built in, with some changes.
func config(changes map[string]string) string {
	values := map[string]string{"IKCONFIG": "y"}
	for _, n := range needed {
		values[n.option] = "y"
	}
	maps.Copy(values, changes)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if values[name] == "" {
			b.WriteString("# CONFIG_" + name + " is not set\n")
		} else {
			b.WriteString("CONFIG_" + name + "=" + values[name] + "\n")
		}
	}
	return b.String()
}

// vmlinux is what there is of a kernel for these tests; it carries a configuration where
// that is not empty.
func vmlinux(t testing.TB, config string) []byte {
	t.Helper()
	image := []byte("\x7fELF... Linux version 6.12.1-custom+ (me@here) #1 ...")
	if config == "" {
		return image
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(config)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return slices.Concat(image, configStart, packed.Bytes(), configEnd, []byte("more"))
}

// build is what make tar-pkg makes.
func build(t testing.TB, config string, modules map[string]string) []byte {
	files := map[string]string{"boot/vmlinuz-" + release: string(vmlinux(t, "")), "boot/config-" + release: config, "boot/System.map-" + release: "x"}
	maps.Copy(files, modules)
	return plainTar(t, files)
}

func TestCustomKernels(t *testing.T) {
	virtual := map[string]string{"VIRTIO_BLK": "m", "OVERLAY_FS": "m"}
	with := map[string]string{}
	for name, content := range kernelFiles() {
		if strings.HasPrefix(strings.TrimPrefix(name, "./"), "lib/modules/") || strings.Contains(name, "/lib/modules/") {
			with[name] = content
		}
	}
	whole := vmlinux(t, config(nil))
	for name, c := range map[string]struct {
		input   []byte
		release string
		code    api.Code
		says    []string
	}{
		"vmlinux":                     {input: whole, release: "6.12.1-custom+"},
		"bzImage":                     {input: bzImage(compressed(t, ".gz", whole), len(whole)), release: "6.12.1-custom+"},
		"archive":                     {input: build(t, config(nil), nil), release: "6.12.1-custom+"},
		"archive, xz":                 {input: compressed(t, ".xz", build(t, config(nil), nil)), release: "6.12.1-custom+"},
		"archive with modules":        {input: build(t, config(virtual), with), release: release},
		"modules that are not there":  {input: build(t, config(virtual), nil), code: api.CodeUnsupported, says: []string{"CONFIG_VIRTIO_BLK (=m, and the module is not there)", "CONFIG_OVERLAY_FS (=m"}},
		"without options":             {input: vmlinux(t, config(map[string]string{"VIRTIO_NET": "", "EXT4_FS": "n", "VSOCKETS": ""})), code: api.CodeUnsupported, says: []string{"CONFIG_VIRTIO_NET, CONFIG_VSOCKETS, CONFIG_EXT4_FS"}},
		"what cannot be a module":     {input: vmlinux(t, config(map[string]string{"DEVTMPFS": "m"})), code: api.CodeUnsupported, says: []string{"CONFIG_DEVTMPFS"}},
		"no configuration":            {input: vmlinux(t, ""), code: api.CodeInvalid, says: []string{"CONFIG_IKCONFIG"}},
		"an empty configuration":      {input: build(t, "# nothing\n", nil), code: api.CodeInvalid, says: []string{"no line CONFIG_"}},
		"a broken configuration":      {input: slices.Concat(vmlinux(t, ""), configStart, []byte("\x1f\x8bxxxx"), configEnd), code: api.CodeInvalid, says: []string{"configuration"}},
		"a configuration of zeros":    {input: vmlinux(t, strings.Repeat("\x00", maxConfig+1)), code: api.CodeInvalid, says: []string{"more than"}},
		"no release":                  {input: bytes.ReplaceAll(whole, []byte("Linux version"), []byte("Minix version")), code: api.CodeInvalid, says: []string{"release"}},
		"an archive without a kernel": {input: plainTar(t, map[string]string{"boot/config-x": config(nil)}), code: api.CodeInvalid, says: []string{"no boot/vmlinuz-*"}},
		"a cut archive":               {input: compressed(t, ".xz", build(t, config(nil), nil))[:200], code: api.CodeInvalid, says: []string{"archive"}},
		"text":                        {input: []byte("hello"), code: api.CodeInvalid, says: []string{"neither a Debian package"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, db, dir := newManager(t)
			k, err := m.Import(t.Context(), "mine", bytes.NewReader(c.input), noReport)
			if c.code == "" {
				if err != nil || k.Release != c.release {
					t.Fatalf("got %+v, %v", k, err)
				}
				if _, err := m.Boot(t.Context(), "mine"); err != nil {
					t.Error(err)
				}
				return
			}
			if api.CodeOf(err) != c.code || !strings.HasPrefix(err.Error(), `import kernel "mine": `) || api.AsError(err).Hint == "" && c.code == api.CodeUnsupported {
				t.Errorf("got %s: %v", api.CodeOf(err), err)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
			if left, _ := os.ReadDir(filepath.Join(dir, "kernels")); len(left) > 0 || len(db.refs) > 0 {
				t.Errorf("%v and %v are left", left, db.refs)
			}
		})
	}
}

// TestRealKernelAsCustom takes the distribution's kernel for one of somebody's own, with
// and without its modules.
func TestRealKernelAsCustom(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no kernel to get here: ", err)
	}
	o, err := newest(t.Context(), apt)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	root, err := os.OpenRoot(work)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	packages, err := download(t.Context(), o, work)
	for _, p := range packages {
		if _, uerr := unpack(p, root); uerr != nil {
			t.Fatal(uerr)
		}
		p.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(filepath.Join(work, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	image, err = extractVmlinux(image)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := releaseOf(image); err != nil || name != o.release {
		t.Errorf("it calls itself %q, %v", name, err)
	}
	if name, _, err := customise(image, work, runtime.GOARCH); err != nil || name != o.release {
		t.Errorf("with its modules: %q, %v", name, err)
	}
	if err := os.RemoveAll(filepath.Join(work, "lib")); err != nil {
		t.Fatal(err)
	}
	if _, _, err = customise(image, work, runtime.GOARCH); api.CodeOf(err) != api.CodeUnsupported || !strings.Contains(err.Error(), "CONFIG_VIRTIO_BLK (=m") || strings.Contains(err.Error(), "EXT4") {
		t.Errorf("without: %v", err)
	}
}

func TestDefaultKernel(t *testing.T) {
	m, _, _ := newManager(t)
	for _, name := range []string{"a", "b"} {
		if _, err := m.Import(t.Context(), name, bytes.NewReader(vmlinux(t, config(nil))), noReport); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := m.Get(t.Context(), ""); err != nil || k.Name != "a" {
		t.Errorf("the first one: %+v, %v", k, err)
	}
	if k, err := m.SetDefault(t.Context(), "b"); err != nil || !k.Default {
		t.Errorf("made the default: %+v, %v", k, err)
	}
	if k, err := m.Get(t.Context(), ""); err != nil || k.Name != "b" {
		t.Errorf("after it: %+v, %v", k, err)
	}
	for name, code := range map[string]api.Code{"": api.CodeInvalid, "c": api.CodeNotFound} {
		if _, err := m.SetDefault(t.Context(), name); api.CodeOf(err) != code {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzConfigIn(f *testing.F) {
	f.Add(vmlinux(f, config(nil)))
	f.Add([]byte("IKCFG_ST\x1f\x8bIKCFG_ED"))
	f.Fuzz(func(t *testing.T, image []byte) {
		text, err := configIn(image)
		if err == nil && len(text) > maxConfig {
			t.Errorf("%d bytes", len(text))
		}
		if err != nil && api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%v", err)
		}
	})
}
