package firecracker

import (
	"os"
	"testing"

	"banger/api"
	"banger/internal/vmm"
	"banger/internal/vmm/vmmtest"
)

// The suite on a real Firecracker, which has to be named: make test-firecracker.
func TestConformance(t *testing.T) {
	o := Options{Binary: os.Getenv("BANGER_FIRECRACKER"), Jailer: os.Getenv("BANGER_JAILER")}
	if o.Binary == "" {
		t.Skip("not run: BANGER_FIRECRACKER (and BANGER_JAILER) name no Firecracker; see make test-firecracker")
	}
	boot := vmmtest.BootFromEnv(t)
	var info vmm.Info
	var err error
	for range 20 { // an emulated host that is busy takes long for the probe
		if info, err = New(o).Check(t.Context()); err == nil || api.CodeOf(err) != api.CodeUnsupported {
			break
		}
	}
	if api.CodeOf(err) == api.CodeUnsupported {
		t.Skip("not run here: ", err)
	}
	must(t, err)
	t.Logf("%s %s, SHA-256 %s, %s", info.Binary, info.Version, info.Digest, info.Reason)
	vmmtest.Conformance(t, func() vmm.Driver { return driverOf(o) }, boot)
	t.Run("without a jail", func(t *testing.T) {
		free := o
		free.NoJail = true
		vmmtest.Unconfined(t, func() vmm.Driver { return driverOf(free) }, boot)
	})
}
