package vm

import (
	"reflect"
	"strconv"
	"testing"

	"banger/api"
)

// TestLimitsAreThoseDescribed holds the checks together with what the API's
// description says of them, the tags min, max and match.
func TestLimitsAreThoseDescribed(t *testing.T) {
	create, set := reflect.TypeFor[api.CreateVM](), reflect.TypeFor[api.SetVM]()
	for _, tc := range []struct {
		in         reflect.Type
		field, tag string
		want       int64
	}{
		{create, "CPUs", "max", maxCPUs},
		{create, "RootSize", "max", maxDiskSize},
		{create, "DiskSize", "max", maxDiskSize},
		{set, "CPUs", "max", maxCPUs},
		{set, "Memory", "min", minMemory},
		{set, "RootSize", "min", minDiskSize},
		{set, "RootSize", "max", maxDiskSize},
		{set, "DiskSize", "max", maxDiskSize},
	} {
		f, _ := tc.in.FieldByName(tc.field)
		if got := f.Tag.Get(tc.tag); got != strconv.FormatInt(tc.want, 10) {
			t.Errorf("%s.%s: %s is %q, want %d", tc.in.Name(), tc.field, tc.tag, got, tc.want)
		}
	}
	name, _ := set.FieldByName("Name")
	if got := name.Tag.Get("match"); got != validName.String() {
		t.Errorf("a name matches %s, described is %s", validName, got)
	}
}
