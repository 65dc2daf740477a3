package hosttest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/linux"
)

// tmpfsSource marks the mounts that a test has made itself.
const tmpfsSource = "banger-test"

// MountTmpfs mounts a small file system of its own at a directory, until the end
// of the test. Size is as mount(8) takes it for tmpfs.
func MountTmpfs(t testing.TB, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount := exec.Command("mount", "-t", "tmpfs", "-o", "mode=0700,size="+size, tmpfsSource, dir)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// cleanUp deletes the VMs, ends the daemon and fails t for whatever is left.
func (h *Host) cleanUp(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(h.Paths.State); err != nil {
		return // no command ever ran
	}
	if list := h.Banger(t, "vm", "list", "--quiet"); list.Exit == 0 {
		for id := range strings.FieldsSeq(list.Stdout) {
			if r := h.Banger(t, "vm", "delete", "--force", id); r.Exit != 0 {
				t.Errorf("delete VM %s at the end of the test: %s", id, r.Stderr)
			}
		}
	}
	installation := h.installation(t)
	h.StopDaemon(t)
	for _, left := range h.leftovers(installation) {
		t.Errorf("left on the host: %s", left)
	}
	// What is left is reported; it must not disturb the tests that follow.
	for _, pid := range h.processes() {
		if process, err := os.FindProcess(pid); err == nil {
			_ = process.Kill() // it may have ended by itself
		}
	}
}

// networkPatience is how long what VMs shared of the network may stay after the last one.
const networkPatience = 20 * time.Second

// shared says whether VMs shared what is left.
func shared(left string) bool {
	return strings.HasPrefix(left, "link b") && !strings.HasPrefix(left, "link bt") ||
		strings.HasPrefix(left, "nft tables ") || strings.HasPrefix(left, "forwarding ")
}

// CheckNothingLeft fails t for whatever VMs have left on the host, once all of
// them are deleted. The daemon may be running; what they shared of the network goes some
// seconds after them.
func (h *Host) CheckNothingLeft(t testing.TB) {
	t.Helper()
	if ids := h.VMs(t); len(ids) > 0 {
		t.Errorf("left: VMs %v", ids)
	}
	daemon := "process " + strconv.Itoa(h.DaemonPID()) + " "
	var left []string
	for end := time.Now().Add(networkPatience); ; time.Sleep(100 * time.Millisecond) {
		left = slices.DeleteFunc(h.leftovers(h.installation(t)), func(l string) bool { return strings.HasPrefix(l, daemon) })
		if !slices.ContainsFunc(left, shared) || time.Now().After(end) {
			break
		}
	}
	for _, l := range left {
		t.Errorf("left on the host: %s", l)
	}
}

// Files lists the files of the state directory that belong to VMs, images and
// kernels, with the size of each.
func (h *Host) Files(t testing.TB) []string {
	t.Helper()
	var files []string
	for _, kind := range []string{"vms", "suspended", "layers", "kernels"} {
		err := filepath.WalkDir(filepath.Join(h.Paths.State, kind), func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if filepath.Dir(path) == h.Paths.State {
				return nil // the directory of all of a kind may be there, empty
			}
			if !d.IsDir() {
				path += " " + strconv.FormatInt(info.Size(), 10)
			}
			files = append(files, path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// leftovers describes everything of the installation that is on the host and
// belongs to a VM or a daemon.
func (h *Host) leftovers(installation string) []string {
	var left []string
	for _, pid := range h.processes() {
		left = append(left, "process "+strconv.Itoa(pid)+" "+commandLine(pid))
	}
	left = append(left, h.mounts()...)
	left = append(left, h.loops()...)
	left = append(left, cgroups(installation)...)
	if installation != "" {
		left = append(left, h.networkLeftovers(installation)...)
	}
	for _, dir := range []string{filepath.Join(h.Paths.Run, "vm"), filepath.Join(h.Paths.State, "vms"), filepath.Join(h.Paths.State, "suspended")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			left = append(left, err.Error())
		}
		for _, entry := range entries {
			left = append(left, "file "+filepath.Join(dir, entry.Name()))
		}
	}
	return left
}

// processes returns those that name a directory of the installation in their
// command line or have it in their environment.
func (h *Host) processes() []int {
	var pids []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() || !alive(pid) {
			continue
		}
		environment, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ")) // it may be gone
		named := h.names(commandLine(pid)) || slices.Contains(strings.Split(string(environment), "\x00"), "BANGER_STATE_DIR="+h.Paths.State)
		if named {
			pids = append(pids, pid)
		}
	}
	return pids
}

func commandLine(pid int) string {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")) // it may be gone
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}

func (h *Host) mounts() []string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for line := range strings.Lines(string(text)) {
		if h.names(line) && !strings.HasPrefix(line, tmpfsSource+" ") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	return left
}

// loops returns the loop devices over a file of the installation.
func (h *Host) loops() []string {
	var left []string
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return []string{err.Error()}
	}
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && h.names(string(backing)) {
			left = append(left, "loop device "+file+" over "+strings.TrimSpace(string(backing)))
		}
	}
	return left
}

func cgroups(installation string) []string {
	root, err := linux.CgroupRoot()
	if err != nil || installation == "" {
		return nil
	}
	left, err := filepath.Glob(filepath.Join(root, "banger-"+installation+"*"))
	if err != nil {
		return []string{err.Error()}
	}
	scopes, err := filepath.Glob(filepath.Join(root, "banger.slice", "banger-"+installation+"-*"))
	if err != nil {
		return []string{err.Error()}
	}
	left = append(left, scopes...)
	for i, dir := range left {
		left[i] = "cgroup " + dir
	}
	return left
}

// names tells whether a text mentions a directory of the installation.
func (h *Host) names(text string) bool {
	return strings.Contains(text, h.Paths.State+"/") || strings.Contains(text, h.Paths.Run+"/") ||
		strings.Contains(text, h.Paths.State+" ") || strings.HasSuffix(text, h.Paths.State)
}
