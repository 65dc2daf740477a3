package daemon

import (
	"cmp"
	"hash/fnv"

	"banger/internal/config"
)

// The users of VMMs where the configuration names none. Distributions give those below
// 65536 to people and services, useradd those up to 600,100,000 as subordinate ones, and
// systemd those from 524288 to 0x6fffffff to containers and from 0x7ffe0000 on to trees
// of files (https://systemd.io/UIDS-GIDS); what is between is nobody's. An installation
// has 65536 of them, by its identity, so that two on a host have different ones.
const (
	firstUID = 0x70000000
	uidRange = 1 << 16
	uidSlots = (0x7ffe0000 - firstUID) / uidRange
)

func vmUIDs(cfg config.Config, installation string) config.IDs {
	h := fnv.New32a()
	_, _ = h.Write([]byte(installation)) // it never fails
	first := firstUID + h.Sum32()%uidSlots*uidRange
	return cmp.Or(cfg.VM.UIDs, config.IDs{First: first, Last: first + uidRange - 1})
}
