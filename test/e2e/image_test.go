package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// toolImage is an archive as docker save makes it, of an image that has the program
// /tool and nothing else, for a machine, with the part "config" of its config. The
// program is there under other names too.
func toolImage(t *testing.T, tool, arch, config string, names ...string) string {
	t.Helper()
	code, err := os.ReadFile(tool)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"tool": string(code)}
	for _, name := range names {
		files[name] = string(code)
	}
	layer := archiveOf(t, files)
	const manifest = `[{"Config":"config.json","RepoTags":["tool:latest"],"Layers":["layer.tar"]}]`
	config = fmt.Sprintf(`{"architecture":%q,"os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
		arch, config, sha256.Sum256([]byte(layer)))
	return archiveOf(t, map[string]string{"manifest.json": manifest, "config.json": config, "layer.tar": layer}, "manifest.json")
}

func buildTool(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "tool")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, "./testdata/tool")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image's program: %v: %s", err, out)
	}
	return program
}

// TestImageConfig has images without a shell and without users say how they are to be
// run: in the foreground, in the background, and beside what runs.
func TestImageConfig(t *testing.T) {
	h := hosttest.NewSeeded(t)
	tool := buildTool(t)
	importing := func(name, arch, config string, names ...string) {
		t.Helper()
		if r := h.Pipe(t, toolImage(t, tool, arch, config, names...), "image", "import", name, "-"); r.Exit != 0 {
			t.Fatal(r.Stderr)
		}
	}
	const common = `"User":"1000:1001","WorkingDir":"/srv/app","Env":["A=image","B=image"],"Entrypoint":["/tool"]`
	importing("says", "amd64", `{`+common+`,"Cmd":["say","x y"]}`)
	importing("fails", "amd64", `{`+common+`,"Cmd":["fail"]}`)
	importing("boots", "amd64", `{`+common+`,"Cmd":["say","x y"]}`, "sbin/init")
	importing("other", "arm64", `{`+common+`}`)
	importing("served", "amd64", `{`+common+`,"Cmd":["serve"],"StopSignal":"SIGQUIT","ExposedPorts":{"8080/tcp":{},"53/udp":{}},"Labels":{"of":"ours"},
		"Healthcheck":{"Test":["CMD","/tool","check"],"Interval":500000000,"Timeout":20000000000,"Retries":2}}`)

	refused{args: []string{"vm", "create", "--image", "other"}, exit: api.CodeUnsupported.ExitStatus(), error: "linux/arm64", hint: "--platform linux/amd64"}.check(t, h)
	show := h.Must(t, "image", "show", "served")
	for _, want := range []string{"entrypoint    /tool", "command       serve", "user          1000:1001", "directory     /srv/app", "environment   A=image B=image",
		"ports         53/udp, 8080/tcp", "stop signal   QUIT", "health check  /tool check (every 500ms, timeout 20s, 2 retries, start period 0s)", "labels        of=ours", "platform      linux/amd64"} {
		if !strings.Contains(show, want) {
			t.Errorf("image show lacks %q:\n%s", want, show)
		}
	}

	if got := h.Must(t, "vm", "run", "--rm", "--image", "says"); got != "1000 1001 [] /srv/app image image / [x y]" {
		t.Errorf("the image's command said %q", got)
	}
	if r := h.Banger(t, "vm", "run", "--rm", "--image", "fails", "-e", "A=1"); r.Exit != 7 || r.Stdout != "fail: what?\n" {
		t.Errorf("one that fails: exit status %d, %q, %q", r.Exit, r.Stdout, r.Stderr)
	}
	ownInit(t, h)
	served(t, h)
	h.Must(t, "vm", "delete", "--force", "s", "i")
	h.Must(t, "image", "rm", "says", "fails", "boots", "other", "served")
	nothingLeft(t, h)
}

// ownInit has an image's init be process 1, as root whoever the image's user is, while
// commands are run as its config says.
func ownInit(t *testing.T, h *hosttest.Host) {
	t.Helper()
	if got := h.Must(t, "vm", "run", "--init", "--name", "i", "--image", "boots"); got != "1000 1001 [] /srv/app image image / [x y]" {
		t.Errorf("the image's command said %q beside its init", got)
	}
	if log := h.Must(t, "vm", "logs", "i"); !strings.Contains(log, `process 1 of user 0 in / with A=""`) {
		t.Errorf("its init said:\n%s", log)
	}
}

// served runs the image in the background.
func served(t *testing.T, h *hosttest.Host) {
	t.Helper()
	if got := h.Must(t, "vm", "run", "--detach", "--name", "s", "--image", "served"); got != "s" {
		t.Errorf("run --detach said %q", got)
	}
	logged := func(what string) {
		t.Helper()
		hosttest.Eventually(t, time.Minute, "the console says "+what, func() bool { return strings.Contains(h.Must(t, "vm", "logs", "s"), what) })
	}
	logged("it serves")
	for want, args := range map[string][]string{
		"1000 1001 [] /srv/app image image / [c]": {"s", "--", "/tool", "say", "c"},
		"0 0 [] / image mine / []":                {"-u", "0", "-w", "/", "-e", "B=mine", "s", "--", "/tool", "say"},
		"12 0 [] /srv/app image image / []":       {"-u", "12", "s", "--", "/tool", "say"},
	} {
		if got := h.Must(t, append([]string{"vm", "exec"}, args...)...); got != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
	if got := h.Must(t, "vm", "ssh", "s", "--", "/tool", "say"); !strings.HasPrefix(got, "0 0 [] /root image image ") {
		t.Errorf("by ssh: %q", got)
	}
	refused{args: []string{"vm", "exec", "-u", "app", "s", "--", "/tool", "say"}, exit: exitInvalid, error: `no user "app"`}.check(t, h)
	if r := h.Banger(t, "vm", "exec", "s", "--", "sh"); r.Exit != 127 {
		t.Errorf("a shell: %+v", r)
	}

	ports := h.Must(t, "vm", "ports", "s")
	for _, want := range []string{"tcp       8080  ::", "udp       53    -", "yes"} {
		if !strings.Contains(ports, want) {
			t.Errorf("vm ports lacks %q:\n%s", want, ports)
		}
	}
	health := func(want api.HealthStatus) api.VM {
		t.Helper()
		var vm api.VM
		hosttest.Eventually(t, time.Minute, "it is "+string(want), func() bool {
			if err := json.Unmarshal([]byte(h.Must(t, "vm", "show", "--json", "s")), &vm); err != nil {
				t.Fatal(err)
			}
			return vm.Health != nil && vm.Health.Status == want
		})
		return vm
	}
	if vm := health(api.HealthHealthy); strings.Join(vm.Ports, " ") != "53/udp 8080/tcp" || strings.Join(vm.Command, " ") != "/tool serve" {
		t.Errorf("vm show: %+v", vm)
	}
	if got := h.Must(t, "vm", "list"); !strings.Contains(got, "running (healthy)") {
		t.Errorf("vm list:\n%s", got)
	}
	h.Must(t, "vm", "exec", "-u", "0", "s", "--", "/tool", "touch", "/broken")
	if vm := health(api.HealthUnhealthy); vm.Health.Exit != 7 || vm.Health.Output != "it is broken" {
		t.Errorf("its health: %+v", vm.Health)
	}
	h.KillDaemon(t) // the next one asks the guest
	health(api.HealthUnhealthy)
	h.Must(t, "vm", "stop", "--timeout", "1m", "s")
	logged("told to end: quit")
}
