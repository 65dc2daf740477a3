package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"banger/api"
	"banger/internal/intake"
)

// maxConfig bounds the configuration of a kernel, in bytes.
const maxConfig = 4 << 20

// needed are the options without which a kernel does not serve a VM. An option with a
// module may be =m where the module comes with the kernel.
var needed = []struct{ option, module string }{
	// The machine: what it is found by, its disks, network and channel. It has no PCI, but
	// ACPI without PCI has no handler for the region and loads no table (ACPICA's evhandler.c).
	{"PVH", ""}, {"ACPI", ""}, {"PCI", ""}, {"SERIAL_8250_CONSOLE", ""},
	{"VIRTIO", "virtio"}, {"VIRTIO_MMIO", "virtio_mmio"}, {"VIRTIO_BLK", "virtio_blk"}, {"VIRTIO_NET", "virtio_net"},
	{"VIRTIO_CONSOLE", "virtio_console"}, {"VSOCKETS", "vsock"}, {"VIRTIO_VSOCKETS", "vmw_vsock_virtio_transport"},
	// The root.
	{"BLK_DEV_INITRD", ""}, {"EXT4_FS", "ext4"}, {"OVERLAY_FS", "overlay"},
	{"PROC_FS", ""}, {"SYSFS", ""}, {"DEVTMPFS", ""}, {"TMPFS", ""}, {"CGROUPS", ""}, {"UNIX98_PTYS", ""},
	// What the agent, which is a program in Go, and everybody else take for granted.
	{"BINFMT_ELF", ""}, {"MULTIUSER", ""}, {"FUTEX", ""}, {"EPOLL", ""}, {"NET", ""}, {"INET", ""}, {"UNIX", "unix"},
}

// optionsOf are those that only one architecture has.
var optionsOf = map[string]string{"PVH": "amd64", "ACPI": "amd64", "PCI": "amd64", "SERIAL_8250_CONSOLE": "amd64"}

// checkOptions compares a kernel's configuration with what banger needs, and makes the
// tree of its modules know what is built in. It is unsupported, naming all of it, where
// something is missing.
func checkOptions(config []byte, t *tree, arch string) error {
	values := map[string]string{}
	for line := range strings.Lines(string(config)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "CONFIG_") {
			values[strings.TrimPrefix(name, "CONFIG_")] = value
		}
	}
	if len(values) == 0 {
		return api.Errorf(api.CodeInvalid, "its configuration has no line CONFIG_...=").WithHint("give the .config that it was built with")
	}
	var missing []string
	for _, n := range needed {
		if only, ok := optionsOf[n.option]; ok && only != arch {
			continue
		}
		switch value := values[n.option]; {
		case value == "y":
			t.builtin[n.module] = true
		case value == "m" && n.module != "" && t.files[n.module] != "":
		case value == "m":
			missing = append(missing, "CONFIG_"+n.option+" (=m, and the module is not there)")
		default:
			missing = append(missing, "CONFIG_"+n.option)
		}
	}
	if values["VIRTIO"] == "y" {
		t.builtin["virtio_ring"] = true // which has no option that anybody sets
	}
	if len(missing) > 0 {
		return api.Errorf(api.CodeUnsupported, "it is built without what banger needs: %s", strings.Join(missing, ", ")).
			WithHint("build it with these options =y, or import it with its modules: make tar-pkg, or make bindeb-pkg")
	}
	return nil
}

// The marks around the configuration that a kernel with CONFIG_IKCONFIG carries; see
// kernel/configs.c of Linux.
var (
	configStart = []byte("IKCFG_ST")
	configEnd   = []byte("IKCFG_ED")
)

// configIn finds the configuration that a kernel carries.
func configIn(vmlinux []byte) ([]byte, error) {
	_, rest, found := bytes.Cut(vmlinux, configStart)
	packed, _, whole := bytes.Cut(rest, configEnd)
	if !found || !whole {
		return nil, api.Errorf(api.CodeInvalid, "it does not tell its configuration (it is built without CONFIG_IKCONFIG)").
			WithHint("give the .config that it was built with: --config FILE")
	}
	plain, _, err := intake.OpenWithin(bytes.NewReader(packed), maxWindow)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read the configuration in it: %w", err)
	}
	defer plain.Close()
	return readConfig(plain)
}

func readConfig(r io.Reader) ([]byte, error) {
	config, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err == nil && len(config) > maxConfig {
		err = fmt.Errorf("it has more than %d bytes", maxConfig)
	}
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read its configuration: %w", err)
	}
	return config, nil
}

var banner = regexp.MustCompile(`Linux version ([A-Za-z0-9][A-Za-z0-9._+-]{0,99}) \(`)

// releaseOf is what a kernel calls itself.
func releaseOf(vmlinux []byte) (string, error) {
	found := banner.FindSubmatch(vmlinux)
	if found == nil {
		return "", api.Errorf(api.CodeInvalid, "it does not tell its release: there is no \"Linux version\" in it")
	}
	return string(found[1]), nil
}

// configFile is where unpacking puts a configuration.
const configFile = "config"

// customise checks a kernel that no distribution has made, of which vmlinux is in
// memory and what came with it in dir, and returns its release and its modules.
func customise(vmlinux []byte, dir, arch string) (release string, t *tree, err error) {
	config, err := os.ReadFile(filepath.Join(dir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		config, err = configIn(vmlinux)
	}
	if err != nil {
		return "", nil, err
	}
	releases, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil {
		return "", nil, err
	}
	switch len(releases) {
	case 0: // all of it is built in
		if release, err = releaseOf(vmlinux); err != nil {
			return "", nil, err
		}
		if err := os.MkdirAll(filepath.Join(dir, "lib/modules", release), 0o755); err != nil {
			return "", nil, err
		}
	case 1:
		release = filepath.Base(releases[0])
	default:
		return "", nil, api.Errorf(api.CodeInvalid, "the archive has modules of %d kernels", len(releases))
	}
	if t, err = readTree(filepath.Join(dir, "lib/modules", release)); err != nil {
		return "", nil, err
	}
	return release, t, checkOptions(config, t, arch)
}
