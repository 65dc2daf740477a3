// Package config knows where an installation keeps its things and reads its
// configuration file. It is a leaf: it imports nothing of banger's own but api.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/api"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
)

// Paths are the directories of one installation. Several live side by side on a
// host when their paths differ.
type Paths struct {
	State  string // what must survive a reboot
	Run    string // sockets; may lie on a tmpfs
	Config string // the configuration file
}

// FromEnv returns the paths that BANGER_STATE_DIR, BANGER_RUN_DIR and
// BANGER_CONFIG name, or the defaults, all absolute.
func FromEnv() Paths {
	abs := func(env, fallback string) string {
		path, err := filepath.Abs(cmp.Or(os.Getenv(env), fallback))
		if err != nil {
			return fallback // no working directory: what is relative has no meaning
		}
		return path
	}
	return Paths{
		State:  abs("BANGER_STATE_DIR", "/var/lib/banger"),
		Run:    abs("BANGER_RUN_DIR", "/run/banger"),
		Config: abs("BANGER_CONFIG", "/etc/banger/config.toml"),
	}
}

// Env is the environment that names p to FromEnv, wherever a process runs.
func (p Paths) Env() []string {
	return []string{"BANGER_STATE_DIR=" + p.State, "BANGER_RUN_DIR=" + p.Run, "BANGER_CONFIG=" + p.Config}
}

// Socket is where the daemon listens.
func (p Paths) Socket() string { return filepath.Join(p.Run, "bangerd.sock") }

// Lock is the file whose lock the daemon has that serves the installation.
func (p Paths) Lock() string { return filepath.Join(p.State, "lock") }

// Size is a number of bytes, written as 512M or 10G (binary units).
type Size int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	*s = Size(n)
	return err
}

// Reserve is a number of bytes, or DefaultReserve.
type Reserve int64

// DefaultReserve, written as "", leaves the number to who keeps the reserve.
const DefaultReserve Reserve = -1

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Reserve) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = DefaultReserve
		return nil
	}
	n, err := units.RAMInBytes(string(text))
	if err == nil && n < 0 {
		err = fmt.Errorf("storage.reserve is %d; it must not be less than 0", n)
	}
	*r = Reserve(n)
	return err
}

// Subnet is an IPv4 prefix that has room for hosts, such as 10.61.0.0/20.
type Subnet struct{ netip.Prefix }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Subnet) UnmarshalText(text []byte) error {
	if err := s.Prefix.UnmarshalText(text); err != nil {
		return err
	}
	if s.IsValid() && (!s.Addr().Is4() || s.Bits() < 8 || s.Bits() > 29 || s.Prefix != s.Masked()) {
		return fmt.Errorf("%s is no IPv4 subnet of /8 to /29", s)
	}
	return nil
}

// DefaultGroup is the group whose members may use the daemon where the configuration
// names none.
const DefaultGroup = "banger"

// IDs is a range of user ids, both ends included, written as 1879048192-1879113727.
type IDs struct{ First, Last uint32 }

// lowestID is the least user id that no distribution gives to people and services.
const lowestID = 1 << 16

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *IDs) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	first, last, _ := strings.Cut(string(text), "-")
	from, err := strconv.ParseUint(first, 10, 32)
	to, lastErr := strconv.ParseUint(last, 10, 32)
	if err != nil || lastErr != nil || from < lowestID || to < from || to >= math.MaxUint32-1 {
		return fmt.Errorf("%q is no range of user ids from %d on, such as 1879048192-1879113727", text, lowestID)
	}
	r.First, r.Last = uint32(from), uint32(to)
	return nil
}

// Config is the content of the configuration file. Every key has a default.
type Config struct {
	Group string `toml:"group"` // members may use the daemon; VMs are their own
	VM    struct {
		Image    string `toml:"image"`
		CPUs     int    `toml:"cpus"`
		Memory   Size   `toml:"memory"`
		VMM      string `toml:"vmm"`       // auto, firecracker or qemu
		RootDisk string `toml:"root_disk"` // overlay or dm-snapshot
		RootSize Size   `toml:"root_size"`
		DiskSize Size   `toml:"disk_size"` // of the work disk; 0 for none
		Network  string `toml:"network"`   // bridge or none
		NAT      bool   `toml:"nat"`       // whether it may reach what is beyond the host
		IO       IO     `toml:"io"`        // of its disks, by the second
		UIDs     IDs    `toml:"uids"`      // users that VMMs run as; empty: chosen by the installation's identity
	} `toml:"vm"`
	Network struct {
		Subnet    Subnet         `toml:"subnet"`    // of the VMs; a free one is chosen where it is empty
		Allow     []netip.Prefix `toml:"allow"`     // private networks that VMs may reach
		Resolvers []netip.Addr   `toml:"resolvers"` // for guests' queries; the host's where it is empty
	} `toml:"network"`
	Image struct {
		MaxSize    Size                `toml:"max_size"`
		MaxEntries int64               `toml:"max_entries"`
		MaxMemory  Size                `toml:"max_memory"`
		Mirrors    map[string][]string `toml:"mirrors"`  // by registry, such as docker.io: those to ask first
		Insecure   []string            `toml:"insecure"` // registries that may be spoken to without TLS
	} `toml:"image"`
	Storage struct {
		Reserve Reserve `toml:"reserve"` // what stays free of the state directory's file system
	} `toml:"storage"`
	QEMU struct {
		Binary string `toml:"binary"`
	} `toml:"qemu"`
	Firecracker struct {
		Binary        string `toml:"binary"`
		Jailer        string `toml:"jailer"`
		Jail          bool   `toml:"jail"`           // false: as root, with all of the host in sight
		HugePages     bool   `toml:"huge_pages"`     // guests' memory in pages of 2 MiB
		AsyncIO       bool   `toml:"async_io"`       // io_uring for disks
		DiskBandwidth Size   `toml:"disk_bandwidth"` // of each disk, bytes by the second; 0 for no limit
		DiskOps       int64  `toml:"disk_ops"`       // requests likewise
		NetBandwidth  Size   `toml:"net_bandwidth"`  // of each direction
		NetOps        int64  `toml:"net_ops"`        // packets likewise
	} `toml:"firecracker"`
}

// Load reads the file at path; where there is none, everything has its default.
// Unknown keys are errors.
func Load(path string) (Config, error) {
	var c Config
	c.Group = DefaultGroup
	c.VM.Image = "debian"
	c.VM.CPUs = 1
	c.VM.Memory = 512 << 20
	c.VM.VMM = string(api.VMMAuto)
	c.VM.RootDisk = string(api.RootDiskOverlay)
	c.Firecracker.Jail = true
	c.VM.RootSize = 10 << 30
	c.VM.DiskSize = 10 << 30
	c.VM.Network = string(api.NetworkBridge)
	c.VM.NAT = true
	c.Storage.Reserve = DefaultReserve
	c.Image.MaxSize = 20 << 30
	c.Image.MaxEntries = 2_000_000
	c.Image.MaxMemory = 36 << 20
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, api.Errorf(api.CodeInvalid, "read configuration: %w", err).WithHint("name another file with BANGER_CONFIG")
	}
	err = toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c)
	if err == nil {
		err = c.validate()
	}
	if err != nil {
		return c, api.Errorf(api.CodeInvalid, "read configuration %s: %w", path, where(err)).
			WithHint("correct the file, or name another one with BANGER_CONFIG")
	}
	return c, nil
}

// validate refuses numbers with which nothing works. What a VM may ask for, the
// VM service checks.
func (c Config) validate() error {
	for _, number := range []struct {
		key   string
		value int64
	}{
		{"vm.cpus", int64(c.VM.CPUs)}, {"vm.memory", int64(c.VM.Memory)}, {"vm.root_size", int64(c.VM.RootSize)},
		{"image.max_size", int64(c.Image.MaxSize)}, {"image.max_entries", c.Image.MaxEntries}, {"image.max_memory", int64(c.Image.MaxMemory)},
	} {
		if number.value <= 0 {
			return fmt.Errorf("%s is %d; it must be more than 0", number.key, number.value)
		}
	}
	if n := api.Network(c.VM.Network); n != api.NetworkBridge && n != api.NetworkNone {
		return fmt.Errorf("vm.network is %q; it must be bridge or none", n)
	}
	if r := api.RootDisk(c.VM.RootDisk); r != api.RootDiskOverlay && r != api.RootDiskSnapshot {
		return fmt.Errorf("vm.root_disk is %q; it must be overlay or dm-snapshot", r)
	}
	if !api.VMM(c.VM.VMM).Known() {
		return fmt.Errorf("vm.vmm is %q; it must be auto, firecracker or qemu", c.VM.VMM)
	}
	for key, n := range map[string]int64{
		"disk_bandwidth": int64(c.Firecracker.DiskBandwidth), "disk_ops": c.Firecracker.DiskOps,
		"net_bandwidth": int64(c.Firecracker.NetBandwidth), "net_ops": c.Firecracker.NetOps,
	} {
		if n < 0 {
			return fmt.Errorf("firecracker.%s is %d; it must not be less than 0", key, n)
		}
	}
	for _, p := range c.Network.Allow {
		if !p.Addr().Is4() {
			return fmt.Errorf("network.allow: %s is not IPv4", p)
		}
	}
	return nil
}

// where says in which line an error of the decoder is, and of which key.
func where(err error) error {
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(missing.Errors) > 0 {
		first := &missing.Errors[0]
		line, _ := first.Position()
		return fmt.Errorf("line %d: there is no key %s", line, strings.Join(first.Key(), "."))
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := bad.Position()
		why := strings.TrimPrefix(err.Error(), "toml: ")
		// The decoder names the Go type that would do, which is no use to a user.
		if before, _, ok := strings.Cut(why, " into struct field "); ok {
			why = strings.Replace(before, "cannot decode TOML", "it cannot be of type", 1)
		}
		if key := strings.Join(bad.Key(), "."); key != "" {
			why = key + ": " + why
		}
		return fmt.Errorf("line %d: %s", line, why)
	}
	return err
}
