package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/api"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func defaults() Config {
	c := Config{Group: "banger"}
	c.VM.Image, c.VM.CPUs, c.VM.Memory, c.VM.RootSize, c.VM.DiskSize = "debian", 1, 512<<20, 10<<30, 10<<30
	c.VM.RootDisk, c.VM.Network, c.VM.NAT = "overlay", "bridge", true
	c.VM.VMM, c.Firecracker.Jail = "auto", true
	c.Image.MaxSize, c.Image.MaxEntries, c.Image.MaxMemory = 20<<30, 2_000_000, 36<<20
	c.Storage.Reserve = DefaultReserve
	return c
}

func TestLoad(t *testing.T) {
	some := defaults()
	some.VM.CPUs = 4
	every := Config{Group: "wheel"}
	every.VM.Image, every.VM.CPUs, every.VM.Memory, every.VM.RootSize, every.VM.DiskSize = "alpine", 3, 1<<30, 1536<<20, 7<<30
	every.VM.RootDisk, every.VM.Network, every.VM.NAT = "dm-snapshot", "none", false
	every.Network.Subnet.Prefix = netip.MustParsePrefix("10.61.0.0/16")
	every.Network.Allow = []netip.Prefix{netip.MustParsePrefix("192.168.178.0/24")}
	every.Network.Resolvers = []netip.Addr{netip.MustParseAddr("192.168.178.1")}
	every.VM.IO = IO{ReadBPS: 1 << 20, WriteIOPS: 10}
	every.VM.UIDs = IDs{70000, 70999}
	every.Image.MaxSize, every.Image.MaxEntries, every.Image.MaxMemory = 2<<40, 12, 1<<30
	every.QEMU.Binary = "/opt/qemu"
	every.VM.VMM = "firecracker"
	every.Firecracker.Binary, every.Firecracker.Jailer, every.Firecracker.HugePages, every.Firecracker.AsyncIO = "/opt/fc", "/opt/jailer", true, true
	every.Firecracker.DiskBandwidth, every.Firecracker.DiskOps, every.Firecracker.NetBandwidth, every.Firecracker.NetOps = 50<<20, 1000, 10<<20, 2000
	every.Storage.Reserve = 3 << 30
	for name, tc := range map[string]struct {
		path string
		want Config
	}{
		"none":  {filepath.Join(t.TempDir(), "none"), defaults()},
		"empty": {write(t, ""), defaults()},
		"some":  {write(t, "# a comment\n[vm]\ncpus = 4\n"), some},
		"every": {write(t, `group = "wheel"
			[vm]
			image = "alpine"
			vmm = "firecracker"
			cpus = 3
			memory = "1G"
			root_disk = "dm-snapshot"
			root_size = "1.5G"
			disk_size = "7G"
			network = "none"
			nat = false
			io = "read-bps=1M,write-iops=10"
			uids = "70000-70999"
			[network]
			subnet = "10.61.0.0/16"
			allow = ["192.168.178.0/24"]
			resolvers = ["192.168.178.1"]
			[image]
			max_size = "2TiB"
			max_entries = 12
			max_memory = "1G"
			[storage]
			reserve = "3G"
			[qemu]
			binary = "/opt/qemu"
			[firecracker]
			binary = "/opt/fc"
			jailer = "/opt/jailer"
			jail = false
			huge_pages = true
			async_io = true
			disk_bandwidth = "50M"
			disk_ops = 1000
			net_bandwidth = "10M"
			net_ops = 2000`), every},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Load(tc.path); err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":     {"[vm]\ncpu = 4", "line 2: there is no key vm.cpu"},
		"unknown table":   {"\n\n[wires]\nx = 1", "line 3: there is no key wires"},
		"unknown network": {"[vm]\nnetwork = \"wifi\"", "vm.network"},
		"unknown VMM":     {"[vm]\nvmm = \"xen\"", "vm.vmm"},
		"negative rate":   {"[firecracker]\nnet_ops = -1", "firecracker.net_ops is -1"},
		"small subnet":    {"[network]\nsubnet = \"10.0.0.0/30\"", "10.0.0.0/30 is no IPv4 subnet"},
		"bits of a host":  {"[network]\nsubnet = \"10.0.0.1/24\"", "10.0.0.1/24 is no IPv4 subnet"},
		"IPv6 allowed":    {"[network]\nallow = [\"fd00::/8\"]", "fd00::/8 is not IPv4"},
		"people's users":  {"[vm]\nuids = \"1000-2000\"", "1000-2000"},
		"one user":        {"[vm]\nuids = \"70000\"", "70000"},
		"no users":        {"[vm]\nuids = \"70001-70000\"", "70001-70000"},
		"nobody":          {"[vm]\nuids = \"70001-4294967295\"", "70001-4294967295"},
		"bad size":        {"[vm]\nmemory = \"much\"", "line 2: vm.memory"},
		"negative size":   {"[vm]\nmemory = \"-1G\"", "vm.memory"},
		"no size":         {"[vm]\nroot_size = \"0\"", "vm.root_size is 0"},
		"no CPU":          {"[vm]\ncpus = 0", "vm.cpus is 0"},
		"wrong type":      {"group = 4", "line 1: group: it cannot be of type integer"},
		"no table":        {"vm = 4", "line 1: vm: it cannot be of type integer"},
		"no TOML":         {"group = \"a\"\n<xml/>", "line 2: "},
		"said twice":      {"group = \"a\"\ngroup = \"b\"", "line 2: "},
		"not UTF-8":       {"group = \"\xff\"", "line 1: "},
		"huge number":     {"[image]\nmax_entries = 99999999999999999999", "line 2: "},
		"negative room":   {"[storage]\nreserve = \"-1G\"", "storage.reserve"},
		"negative number": {"[image]\nmax_entries = -1", "image.max_entries is -1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, tc.text)
			_, err := Load(path)
			check(t, err, path, tc.want)
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		dir := t.TempDir() // root may read every file, but no directory
		_, err := Load(dir)
		check(t, err, dir, "read configuration: ")
	})
}

func check(t *testing.T, err error, words ...string) {
	t.Helper()
	e := api.AsError(err)
	if e == nil || e.Code != api.CodeInvalid || e.Hint == "" || strings.Contains(e.Message, "\n") {
		t.Fatalf("got %#v, want invalid on one line, with a hint", e)
	}
	if strings.Contains(e.Message, "struct") || strings.Contains(e.Message, "config.Config") {
		t.Errorf("%q tells a user about Go", e.Message)
	}
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			t.Errorf("%q does not say %q", e.Message, w)
		}
	}
}

func TestFromEnv(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"BANGER_STATE_DIR", "BANGER_RUN_DIR", "BANGER_CONFIG"} {
		t.Setenv(name, "")
	}
	want := Paths{State: "/var/lib/banger", Run: "/run/banger", Config: "/etc/banger/config.toml"}
	if got := FromEnv(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	t.Setenv("BANGER_STATE_DIR", "/a/../b/")
	t.Setenv("BANGER_RUN_DIR", "run")
	t.Setenv("BANGER_CONFIG", "./c.toml")
	want = Paths{State: "/b", Run: filepath.Join(dir, "run"), Config: filepath.Join(dir, "c.toml")}
	if got := FromEnv(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := want.Socket(); got != filepath.Join(dir, "run", "bangerd.sock") {
		t.Errorf("socket %s", got)
	}
}
