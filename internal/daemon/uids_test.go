package daemon

import (
	"fmt"
	"testing"

	"banger/internal/config"
)

func TestVMUIDs(t *testing.T) {
	var cfg config.Config
	firsts := map[uint32]bool{}
	for i := range 1000 {
		got := vmUIDs(cfg, fmt.Sprintf("%06x", i))
		if got.First < 0x70000000 || got.Last >= 0x7ffe0000 || got.Last-got.First != 65535 {
			t.Fatalf("installation %06x has users %x to %x", i, got.First, got.Last)
		}
		firsts[got.First] = true
	}
	if len(firsts) < 700 {
		t.Errorf("1000 installations share %d ranges", len(firsts))
	}
	cfg.VM.UIDs = config.IDs{First: 70000, Last: 70999}
	if got := vmUIDs(cfg, "000000"); got != cfg.VM.UIDs {
		t.Errorf("configured %v, got %v", cfg.VM.UIDs, got)
	}
}
