package qemu_test

import (
	"path/filepath"
	"testing"

	"banger/api"
	"banger/internal/vmm"
	"banger/internal/vmm/qemu"
	"banger/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	boot := vmmtest.BootFromEnv(t)
	vmmtest.Conformance(t, func() vmm.Driver { return qemu.New("") }, boot)
}

func TestCheckWithoutQEMU(t *testing.T) {
	_, err := qemu.New(filepath.Join(t.TempDir(), "qemu")).Check(t.Context())
	if e := api.AsError(err); e == nil || e.Code != api.CodeUnavailable || e.Hint == "" {
		t.Errorf("got %#v, want unavailable with a hint", e)
	}
}
