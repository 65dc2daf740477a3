package config

import (
	"fmt"
	"strconv"
	"strings"

	"banger/api"

	"github.com/docker/go-units"
)

// IO is limits of disks, written as read-bps=50M,write-iops=1000; none, or nothing, for
// no limits.
type IO api.IO

// UnmarshalText implements encoding.TextUnmarshaler.
func (io *IO) UnmarshalText(text []byte) error {
	*io = IO{}
	if len(text) == 0 || string(text) == "none" {
		return nil
	}
	for limit := range strings.SplitSeq(string(text), ",") {
		name, value, _ := strings.Cut(limit, "=")
		field, parse := (*int64)(nil), units.RAMInBytes
		switch name {
		case "read-bps":
			field = &io.ReadBPS
		case "write-bps":
			field = &io.WriteBPS
		case "read-iops":
			field = &io.ReadIOPS
		case "write-iops":
			field = &io.WriteIOPS
		default:
			return fmt.Errorf("%q is not read-bps, write-bps, read-iops or write-iops, such as read-bps=50M,write-iops=1000", name)
		}
		if strings.HasSuffix(name, "iops") {
			parse = func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }
		}
		n, err := parse(value)
		if err != nil || n <= 0 {
			return fmt.Errorf("%s takes a number that is more than 0, such as read-bps=50M,write-iops=1000; not %q", name, value)
		}
		if *field != 0 {
			return fmt.Errorf("%s is said twice", name)
		}
		*field = n
	}
	return nil
}

// String writes limits as they are read; "none" where there are none.
func (io IO) String() string {
	var said []string
	for _, limit := range []struct {
		name  string
		value int64
		bytes bool
	}{{"read-bps", io.ReadBPS, true}, {"write-bps", io.WriteBPS, true}, {"read-iops", io.ReadIOPS, false}, {"write-iops", io.WriteIOPS, false}} {
		if limit.value == 0 {
			continue
		}
		value := strconv.FormatInt(limit.value, 10)
		if unit := strings.TrimRight(units.CustomSize("%.0f%s", float64(limit.value), 1024, []string{"", "K", "M", "G", "T"}), "."); limit.bytes {
			if n, err := units.RAMInBytes(unit); err == nil && n == limit.value {
				value = unit
			}
		}
		said = append(said, limit.name+"="+value)
	}
	if len(said) == 0 {
		return "none"
	}
	return strings.Join(said, ",")
}
