package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
	"banger/internal/linux"
)

// foundErrors is the exit status of banger doctor where it found errors.
const foundErrors = 1

// diagnosis is what banger doctor says.
func diagnosis(t *testing.T, h *hosttest.Host, args ...string) (api.Diagnosis, int) {
	t.Helper()
	r := h.Banger(t, append([]string{"doctor", "--json"}, args...)...)
	var d api.Diagnosis
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil {
		t.Fatalf("exit status %d, %v\n%s\n%s", r.Exit, err, r.Stdout, r.Stderr)
	}
	return d, r.Exit
}

// about are the findings about what is kept and made, which are not the host's, as its
// resolvers are.
func about(d api.Diagnosis) (findings []api.Finding) {
	for _, f := range d.Findings {
		if f.Severity != api.SeverityOK && f.Check != "names" && slices.Contains([]string{"daemon", "storage", "database", "network", "things", "vms"}, f.Group) {
			findings = append(findings, f)
		}
	}
	return findings
}

// says looks for one finding.
func says(t *testing.T, d api.Diagnosis, check string, severity api.Severity, message string) {
	t.Helper()
	if !slices.ContainsFunc(d.Findings, func(f api.Finding) bool {
		return f.Check == check && f.Severity == severity && strings.Contains(f.Message, message)
	}) {
		t.Errorf("no %s of %s about %q in %+v", severity, check, message, d.Findings)
	}
}

// fingerprint is made of every byte below the directories, and of all that lstat tells
// but the time of the last access; not of what a guest that runs writes itself.
func fingerprint(t *testing.T, dirs ...string) []string {
	t.Helper()
	var all []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := os.Lstat(path)
			if err != nil {
				return err
			}
			if guests, _ := filepath.Match("*/vms/*/*.ext4", strings.TrimPrefix(path, filepath.Dir(dir)+"/")); guests {
				return nil
			}
			line := fmt.Sprint(path, info.Mode(), info.Size(), info.ModTime().UnixNano())
			if info.Mode().IsRegular() {
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				defer f.Close()
				sum := sha256.New()
				if _, err := io.Copy(sum, io.LimitReader(f, 1<<20)); err != nil { // disks are sparse and large
					return err
				}
				line += fmt.Sprintf(" %x", sum.Sum(nil))
			}
			all = append(all, line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestDoctorChangesNothing has no daemon, one that was killed while its VM runs, and
// a damaged database: doctor looks, starts nothing and leaves each byte as it is.
func TestDoctorChangesNothing(t *testing.T) {
	h := hosttest.NewSeeded(t)
	look := func(what string, want int) (d api.Diagnosis) {
		t.Helper()
		before := fingerprint(t, h.Paths.State, h.Paths.Run)
		d, exit := diagnosis(t, h)
		if exit != want {
			t.Errorf("%s: exit status %d, findings %+v", what, exit, about(d))
		}
		if after := fingerprint(t, h.Paths.State, h.Paths.Run); !slices.Equal(after, before) {
			for _, line := range slices.Concat(before, after) {
				if slices.Contains(before, line) != slices.Contains(after, line) {
					t.Errorf("%s: it changed %s", what, line)
				}
			}
		}
		if pid := h.DaemonPID(); pid != 0 || d.Served {
			t.Errorf("%s: daemon %d, served %v", what, pid, d.Served)
		}
		return d
	}
	h.Must(t, "vm", "run", "--name", "m", "--", "true")
	h.StopDaemon(t)
	if d := look("without a daemon", 0); len(about(d)) != 0 {
		t.Errorf("without a daemon: %+v", about(d))
	}
	h.Must(t, "vm", "create", "--name", "another") // this is in the write-ahead log, then
	h.KillDaemon(t)
	d := look("with a daemon that was killed", 0)
	says(t, d, "ledger", api.SeverityOK, "nothing else")

	database := filepath.Join(h.Paths.State, "banger.db")
	whole, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	broken := slices.Clone(whole)
	copy(broken[:100], make([]byte, 100))
	if err := os.WriteFile(database, broken, 0o600); err != nil {
		t.Fatal(err)
	}
	d = look("with a damaged database", foundErrors)
	says(t, d, "integrity", api.SeverityError, "not a database")
	if err := os.WriteFile(database, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "vm", "exec", "m", "--", "true")
	if d, exit := diagnosis(t, h); exit != 0 || !d.Served || len(about(d)) != 0 {
		t.Errorf("with a daemon: exit status %d, %+v", exit, about(d))
	}
}

// TestDoctorFinds breaks what banger has made on the host, and has doctor find it and
// repair what is ours.
func TestDoctorFinds(t *testing.T) {
	h := hosttest.NewSeeded(t)
	h.Must(t, "vm", "run", "--name", "m", "--", "true")
	var system api.System
	if err := json.Unmarshal([]byte(h.Must(t, "system", "status", "--json")), &system); err != nil {
		t.Fatal(err)
	}
	stray := "bt" + system.Installation + "stray"
	vms := filepath.Join(h.Paths.State, "vms")
	taps, err := linux.LinkNames("bt" + system.Installation)
	if err != nil || len(taps) != 1 {
		t.Fatalf("taps %q, %v", taps, err)
	}
	for _, err := range []error{
		linux.AddTap(stray),
		os.Chmod(vms, 0o777),
		// Somebody takes the VM's tap away, and makes something else in its place.
		linux.DeleteLink(taps[0]),
		linux.AddLink(linux.LinkBridge, taps[0], nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := linux.DeleteLink(taps[0]); err != nil {
			t.Error(err)
		}
	}()
	d, exit := diagnosis(t, h)
	if exit != foundErrors || len(about(d)) != 3 {
		t.Errorf("exit status %d, %+v", exit, about(d))
	}
	says(t, d, "untracked", api.SeverityWarning, "tap "+stray)
	says(t, d, "permissions", api.SeverityError, vms+" has mode 0777")
	says(t, d, "foreign", api.SeverityError, "in the place of tap "+taps[0]+` of VM "m"`)
	if r := h.Banger(t, "doctor"); r.Exit != foundErrors || !strings.Contains(r.Stdout, "do: banger doctor --fix") || !strings.Contains(r.Stdout, "2 errors, ") {
		t.Errorf("exit status %d\n%s%s", r.Exit, r.Stdout, r.Stderr)
	}
	if links, err := linux.LinkNames(stray); err != nil || len(links) != 1 {
		t.Errorf("doctor without --fix has removed %s: %q, %v", stray, links, err)
	}

	if d, exit = diagnosis(t, h, "--fix"); exit != foundErrors || len(d.Repairs) != 2 || len(about(d)) != 1 {
		t.Errorf("exit status %d, %+v, %+v", exit, d.Repairs, about(d))
	}
	if links, err := linux.LinkNames(stray); err != nil || len(links) != 0 {
		t.Errorf("%q, %v", links, err)
	}
	if kind, err := linux.FindLink(taps[0]); err != nil || kind != linux.LinkBridge {
		t.Errorf("what is not ours is %q, %v", kind, err)
	}
	if info, err := os.Stat(vms); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	h.Must(t, "vm", "delete", "--force", "m")
	if d, exit = diagnosis(t, h, "--fix"); exit != 0 || len(d.Repairs) != 0 || len(about(d)) != 0 {
		t.Errorf("exit status %d, %+v, %+v", exit, d.Repairs, about(d))
	}
}

// TestDoctorBrokenHost looks at hosts on which no daemon could work.
func TestDoctorBrokenHost(t *testing.T) {
	t.Run("no qemu", func(t *testing.T) {
		h := hosttest.New(t, "PATH="+pathWithout(t, "qemu-system-x86_64"))
		d, exit := diagnosis(t, h)
		if exit != foundErrors {
			t.Errorf("exit status %d", exit)
		}
		says(t, d, "qemu", api.SeverityError, "qemu-system-x86_64")
	})
	t.Run("bad configuration", func(t *testing.T) {
		h := hosttest.New(t)
		config(t, h, "[vm]\ncpu = 1\n")
		d, exit := diagnosis(t, h)
		if exit != foundErrors {
			t.Errorf("exit status %d", exit)
		}
		says(t, d, "configuration", api.SeverityError, "there is no key vm.cpu")
	})
	t.Run("read-only directory", func(t *testing.T) {
		h := hosttest.New(t)
		hosttest.MountTmpfs(t, h.Paths.State, "16m")
		h.VMs(t)
		h.StopDaemon(t)
		if out, err := exec.Command("mount", "-o", "remount,ro,mode=0711", h.Paths.State).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		d, exit := diagnosis(t, h)
		if exit != foundErrors {
			t.Errorf("exit status %d", exit)
		}
		says(t, d, "writable", api.SeverityError, "read-only file system")
		says(t, d, "integrity", api.SeverityOK, "whole")
	})
	t.Run("a user", func(t *testing.T) {
		h := hosttest.New(t)
		h.VMs(t)
		program := public(t, h)
		bangerd := filepath.Join(filepath.Dir(h.Program()), "bangerd")
		if out, err := exec.Command("install", "-m", "755", bangerd, filepath.Dir(program)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if r := as(t, h, program, 54321, 54321, "doctor"); r.Exit != 0 || !strings.Contains(r.Stdout, "sudo") || strings.Contains(r.Stdout, "database") {
			t.Errorf("exit status %d\n%s%s", r.Exit, r.Stdout, r.Stderr)
		}
		if r := as(t, h, program, 54321, 54321, "doctor", "--fix"); r.Exit != api.CodePermissionDenied.ExitStatus() {
			t.Errorf("exit status %d\n%s%s", r.Exit, r.Stdout, r.Stderr)
		}
	})
}
