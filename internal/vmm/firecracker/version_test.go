package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"context"

	"banger/api"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]features{
		"1.12.0":     {},
		"v1.13.1":    {pci: true},
		"1.14.2":     {pci: true},
		"1.15.0":     {pci: true},
		"1.16.0":     {pci: true, serialLimit: true, mtu: true, vsockOverride: true, gatedResume: true},
		"1.16.1":     {pci: true, serialLimit: true, mtu: true, vsockOverride: true, gatedResume: true},
		"1.16.2":     {pci: true, serialLimit: true, mtu: true, vsockOverride: true},
		"1.17.0-dev": {pci: true, serialLimit: true, mtu: true, vsockOverride: true},
	} {
		v, err := parseVersion(text)
		must(t, err)
		if got, err := v.features(); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, why := range map[string]string{"1.11.0": "older than 1.12", "0.25.0": "older", "2.0.0": "not known"} {
		v, err := parseVersion(text)
		must(t, err)
		if _, err := v.features(); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"", "1", "1.2", "1.2.x", "1.16.1 ", "99999.1.1", "1.16.1-a b"} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q was taken for %s", text, v)
		}
	}
}

// What is no Firecracker, is none any more, or is one that does not serve, is told from
// one that does, with the next step.
func TestCheck(t *testing.T) {
	good := fakes(t, fakeSetup{Unchecked: true})
	whole, err := os.ReadFile(good)
	must(t, err)
	file := func(content []byte, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "firecracker")
		must(t, os.WriteFile(path, content, mode))
		return path
	}
	for name, tc := range map[string]struct {
		o    Options
		want string // of the error, or of the reason
		ok   bool
	}{
		"jailed":         {Options{Binary: good}, "jailed by " + filepath.Join(filepath.Dir(good), "jailer"), true},
		"no jail":        {Options{Binary: good, Jailer: "/none", NoJail: true}, "as root", true},
		"missing":        {Options{Binary: good + "x"}, "look for Firecracker", false},
		"no jailer":      {Options{Binary: file(whole, 0o755)}, "look for Firecracker's jailer", false},
		"other jailer":   {Options{Binary: good, Jailer: fakes(t, fakeSetup{Version: "1.15.0", Unchecked: true})}, `not Jailer and a version`, false},
		"older jailer":   {Options{Binary: good, Jailer: filepath.Join(filepath.Dir(fakes(t, fakeSetup{Version: "1.15.0", Unchecked: true})), "jailer")}, "is of version 1.15.0", false},
		"too old":        {Options{Binary: fakes(t, fakeSetup{Version: "1.11.0", Unchecked: true})}, "older than 1.12", false},
		"newer":          {Options{Binary: fakes(t, fakeSetup{Version: "1.18.0", Unchecked: true})}, "newer than 1.16", true},
		"cut off":        {Options{Binary: file(whole[:len(whole)/2], 0o755), NoJail: true}, "cut off", false},
		"cut off early":  {Options{Binary: file(whole[:20], 0o755), NoJail: true}, "cut off", false},
		"empty":          {Options{Binary: file(nil, 0o755), NoJail: true}, "no ELF program", false},
		"script":         {Options{Binary: file([]byte("#!/bin/sh\necho Firecracker v1.16.1\n"), 0o755), NoJail: true}, "no ELF program", false},
		"not executable": {Options{Binary: file(whole, 0o644), NoJail: true}, "", false},
		"other program":  {Options{Binary: "/bin/true", NoJail: true}, "not Firecracker and a version", false},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := driverOf(tc.o).Check(t.Context())
			if tc.ok {
				if err != nil || !strings.Contains(info.Reason, tc.want) || len(info.Digest) != 64 || info.Version == "" {
					t.Errorf("got %+v, %v; want %q", info, err, tc.want)
				}
				return
			}
			if e := api.AsError(err); e == nil || !strings.Contains(e.Message, tc.want) || e.Code != api.CodeUnavailable || !strings.Contains(e.Hint, programDir) {
				t.Errorf("got %#v, want %q", err, tc.want)
			}
		})
	}
	d := New(Options{Binary: good})
	d.probeKVM = func(context.Context) error { return errors.New("/dev/kvm: no such file") }
	if _, err := d.Check(t.Context()); api.CodeOf(err) != api.CodeUnsupported || !strings.Contains(err.Error(), "needs KVM") {
		t.Errorf("without KVM: %v", err)
	}
}

// A program that is replaced is looked at again.
func TestCheckAgain(t *testing.T) {
	path := fakes(t, fakeSetup{Version: "1.14.0", Unchecked: true})
	d := driverOf(Options{Binary: path, NoJail: true})
	before, err := d.Check(t.Context())
	must(t, err)
	text, err := os.ReadFile(fakes(t, fakeSetup{Version: "1.16.1", Unchecked: true}))
	must(t, err)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, text, 0o755))
	after, err := d.Check(t.Context())
	if err != nil || before.Version != "1.14.0" || after.Version != "1.16.1" || before.Digest == after.Digest {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
}
