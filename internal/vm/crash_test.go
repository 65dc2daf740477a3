package vm_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/hosttest"
	"banger/internal/image"
	"banger/internal/linux"
	"banger/internal/network"
)

// action is something that a user has the daemon do, alone on its host but for the VM
// "z", which runs and has nothing to do with it.
type action struct {
	before func(*world) error // beside the creation of the VM "a"
	do     func(*world) error
	undone func(*world) error // checks what there is where the daemon has reported an error
	spares bool               // whether "a" runs before and is to run after it, whatever happens
	ends   bool               // whether "a" may be gone after it
	beside bool               // whether "z" is on the network too, which so stays
}

// actions are all of them that change what there is on a host.
var actions = map[string]action{
	"create": {do: func(w *world) error {
		_, op, err := w.svc.Create(context.Background(), 0, api.CreateVM{Name: "b", Start: true, Network: api.NetworkBridge})
		return w.wait(op, err)
	}, undone: func(w *world) error {
		_, err := w.svc.Get(context.Background(), 0, "b")
		return absent("VM b", err)
	}},
	"start": {do: startA, before: func(w *world) error { return os.RemoveAll(filepath.Join(w.state, "cache")) }},
	"stop": {beside: true, before: startA, do: onA(func(w *world) (api.Operation, error) {
		return w.svc.Stop(context.Background(), 0, "a", time.Minute, "")
	})},
	"kill": {before: startA, do: onA(func(w *world) (api.Operation, error) { return w.svc.Kill(context.Background(), 0, "a") })},
	"delete": {ends: true, before: func(w *world) error {
		return firstError(w, startA, onA(func(w *world) (api.Operation, error) { return w.svc.Kill(context.Background(), 0, "a") }))
	}, do: onA(func(w *world) (api.Operation, error) { return w.svc.Delete(context.Background(), 0, "a", false) })},
	"delete --force": {ends: true, beside: true, before: startA, do: onA(func(w *world) (api.Operation, error) { return w.svc.Delete(context.Background(), 0, "a", true) })},
	"pause":          {spares: true, before: startA, do: onA(func(w *world) (api.Operation, error) { return w.svc.Pause(context.Background(), 0, "a") })},
	"resume": {spares: true, before: func(w *world) error {
		return firstError(w, startA, onA(func(w *world) (api.Operation, error) { return w.svc.Pause(context.Background(), 0, "a") }))
	}, do: onA(func(w *world) (api.Operation, error) { return w.svc.Resume(context.Background(), 0, "a") })},
	"suspend": {before: startA, do: suspendA, undone: keepsMemory},
	"wake":    {before: func(w *world) error { return firstError(w, startA, suspendA) }, do: startA, undone: keepsMemory},
	"start cold": {
		before: func(w *world) error { return firstError(w, startA, suspendA) },
		do:     onA(func(w *world) (api.Operation, error) { return w.svc.ColdStart(context.Background(), 0, "a") }),
	},
	"kill of a suspended VM": {
		before: func(w *world) error { return firstError(w, startA, suspendA) },
		do:     onA(func(w *world) (api.Operation, error) { return w.svc.Kill(context.Background(), 0, "a") }),
	},
	"delete --force of a suspended VM": {
		ends: true, before: func(w *world) error { return firstError(w, startA, suspendA) },
		do: onA(func(w *world) (api.Operation, error) { return w.svc.Delete(context.Background(), 0, "a", true) }),
	},
	"restart": {before: startA, do: onA(func(w *world) (api.Operation, error) { return w.svc.Restart(context.Background(), 0, "a", time.Minute) })},
	"reset":   {beside: true, before: startA, do: onA(func(w *world) (api.Operation, error) { return w.svc.Reset(context.Background(), 0, "a") })},
	"promote": {undone: noImage("image"), do: onA(func(w *world) (api.Operation, error) { return w.svc.Promote(context.Background(), 0, "a", "image") })},
	"set": {spares: true, before: startA, do: func(w *world) error {
		size := int64(128 << 20)
		v, err := w.svc.Get(context.Background(), 0, "a")
		if err != nil {
			v, err = w.svc.Get(context.Background(), 0, "b")
		}
		if err != nil {
			return err
		}
		return w.wait(w.svc.Set(context.Background(), 0, v.ID, api.SetVM{Name: new("b"), RootSize: &size, DiskSize: &size, NAT: new(!v.NAT)}))
	}},
	"create with a snapshot": {do: func(w *world) error {
		size := int64(128 << 20)
		_, op, err := w.svc.Create(context.Background(), 0, api.CreateVM{Name: "b", Start: true, RootDisk: api.RootDiskSnapshot, RootSize: size})
		return w.wait(op, err)
	}, undone: func(w *world) error {
		_, err := w.svc.Get(context.Background(), 0, "b")
		return absent("VM b", err)
	}},
	"set with a snapshot": {
		before: func(w *world) error {
			_, op, err := w.svc.Create(context.Background(), 0, api.CreateVM{Name: "s", Start: true, RootDisk: api.RootDiskSnapshot, RootSize: 128 << 20})
			return w.wait(op, err)
		},
		do: func(w *world) error {
			return w.wait(w.svc.Set(context.Background(), 0, "s", api.SetVM{RootSize: new(int64(256 << 20))}))
		},
	},
	"image import":                          {spares: true, before: startA, do: func(w *world) error { return w.importImage("other", "false") }},
	"image import of a layer that there is": {undone: noImage("other"), do: func(w *world) error { return w.importImage("other", "true") }},
	"image pull": {spares: true, before: startA, undone: func(w *world) error { return noImage(os.Getenv(pulled))(w) }, do: func(w *world) error {
		_, err := w.images.Pull(context.Background(), 0, api.PullImage{Ref: os.Getenv(pulled)}, nil)
		return err
	}},
	"image tag": {
		before: func(w *world) error { return w.importImage("other", "false") },
		do: func(w *world) error { // which takes the name from an image, and its layer with it
			_, err := w.images.Tag(context.Background(), 0, "debian", "other")
			return err
		},
	},
	"image remove": {
		before: func(w *world) error { return w.importImage("other", "false") },
		do:     func(w *world) error { return w.images.Remove(context.Background(), 0, "other") },
	},
	"kernel import": {undone: noKernel("other"), do: importKernel},
	"kernel pull": {undone: noKernel("6.1-test"), do: func(w *world) error {
		_, err := w.kernels.Pull(context.Background(), func(api.Progress) {})
		return err
	}},
	"kernel default": {before: importKernel, do: func(w *world) error {
		_, err := w.kernels.SetDefault(context.Background(), "other")
		return err
	}},
	"set of a kernel": {before: importKernel, do: onA(func(w *world) (api.Operation, error) {
		return w.svc.Set(context.Background(), 0, "a", api.SetVM{Kernel: new("other")})
	})},
	"kernel remove": {before: importKernel, do: func(w *world) error { return w.kernels.Remove(context.Background(), "other") }},
}

// pulled is the variable of the environment that names the image in a registry.
const pulled = "BANGER_TEST_PULLED"

// serveImage has a registry offer an image of two layers.
func serveImage(t *testing.T) {
	img := empty.Image
	for _, files := range []map[string]string{{"bin/one": "1"}, {"bin/.wh.one": "", "bin/two": "2"}} {
		data := tarOf(files) // of another order the next time
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ref, _ := hosttest.NewRegistry(t).Push(t, "two:1", img)
	t.Setenv(pulled, ref)
}

func noImage(name string) func(*world) error {
	return func(w *world) error {
		_, err := w.images.Get(context.Background(), 0, name)
		return absent("image "+name, err)
	}
}

func noKernel(name string) func(*world) error {
	return func(w *world) error {
		_, err := w.kernels.Get(context.Background(), name)
		return absent("kernel "+name, err)
	}
}

// onA is a request about "a".
func onA(request func(*world) (api.Operation, error)) func(*world) error {
	return func(w *world) error { return w.wait(request(w)) }
}

func startA(w *world) error { return w.wait(w.svc.Start(context.Background(), 0, "a")) }

func suspendA(w *world) error { return w.wait(w.svc.Suspend(context.Background(), 0, "a")) }

// keepsMemory checks that a VM whose suspend or wake came to nothing is at what it was at.
func keepsMemory(w *world) error {
	v, err := w.svc.Get(context.Background(), 0, "a")
	if err == nil && v.State != api.VMRunning && v.State != api.VMSuspended {
		err = fmt.Errorf("it is %s: %s", v.State, v.LastError)
	}
	return err
}

func importKernel(w *world) error {
	_, err := w.kernels.Import(context.Background(), "other", bytes.NewReader(kernelDeb()), func(api.Progress) {})
	return err
}

func (w *world) importImage(name, program string) error {
	_, err := w.images.Import(context.Background(), 0, name, bytes.NewReader(tarOf(map[string]string{"bin/true": program})), nil)
	return err
}

func firstError(w *world, steps ...func(*world) error) error {
	for _, step := range steps {
		if err := step(w); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what there is before an action.
func (w *world) prepare(a action) {
	z := api.CreateVM{Name: "z", Start: true}
	if a.beside {
		z.Network = api.NetworkBridge
	}
	_, op, err := w.svc.Create(context.Background(), 0, z)
	w.must(w.wait(op, err))
	_, op, err = w.svc.Create(context.Background(), 0, api.CreateVM{Name: "a", Network: api.NetworkBridge})
	w.must(w.wait(op, err))
	if a.before != nil {
		w.must(a.before(w))
	}
}

// TestCrashEverywhere has the daemon be killed at each point that an action passes,
// and once more at one of those that the recovery passes. After that what it says is
// so, twice; the action can be made again, or is refused for a reason; and whatever
// there is can be deleted with nothing left.
func TestCrashEverywhere(t *testing.T) {
	c := newCrashes(t)
	var crowded, lonely []func()
	for name := range actions {
		points := c.trace(name)
		t.Logf("%s passes %d points: %s", name, len(points), strings.Join(points, " "))
		for i, point := range points {
			one := func() { c.crash(name, point, 1+i*7%len(points)) }
			if strings.HasPrefix(point, "sysctl.") { // the first on a host opens it, the others find it open
				lonely = append(lonely, one)
			} else {
				crowded = append(crowded, one)
			}
		}
	}
	together(crowded)
	for _, one := range lonely {
		one()
	}
	all := len(crowded) + len(lonely)
	t.Logf("died in %d of %d actions", c.died.Load(), all)
	if int(c.died.Load()) < all*95/100 {
		t.Errorf("the daemon died in %d of %d actions only", c.died.Load(), all)
	}
	if value, err := linux.Sysctl("net/ipv4/conf/" + hosttest.Uplink + "/forwarding"); err != nil || value != "0" {
		t.Errorf("forwarding is %s, %v", value, err)
	}
}

// together makes some calls at the same time: those who end a daemon mostly wait.
func together(calls []func()) {
	todo := make(chan func(), len(calls))
	for _, call := range calls {
		todo <- call
	}
	close(todo)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for call := range todo {
				call()
			}
		})
	}
	workers.Wait()
}

// numbered are points with the number of the passage, as a failpoint is armed by.
func numbered(points []string) []string {
	seen := map[string]int{}
	for i, p := range points {
		seen[p]++
		points[i] = fmt.Sprintf("%s:%d", p, seen[p])
	}
	return points
}

// crashes are many worlds in which a daemon is killed.
type crashes struct {
	t      *testing.T
	seed   string
	server *machineServer
	died   atomic.Int64
}

func newCrashes(t *testing.T) *crashes {
	c := &crashes{t: t, seed: seed(t), server: serveMachines(t)}
	t.Setenv("PATH", c.seed+":"+os.Getenv("PATH"))
	serveImage(t)
	return c
}

// world makes one of them.
func (c *crashes) world() *world {
	w := newWholeWorld(c.t, c.seed)
	c.server.admit(w)
	return w
}

// trace does an action once, undisturbed, and returns the points that it passes.
func (c *crashes) trace(name string) []string {
	w := c.world()
	trace := filepath.Join(w.run, "trace")
	if status, said := w.spawn(name, false, failpoint.EnvTrace+"="+trace); status != exitDone {
		c.t.Fatalf("%s: status %d: %s\n%s", name, status, said, w.log.text)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		c.t.Fatal(err)
	}
	w.aftermath(name)
	if c.t.Failed() {
		c.t.Fatalf("%s, undisturbed:\n%s", name, w.log.text)
	}
	return numbered(strings.Fields(string(text)))
}

// crash kills the daemon at one point of an action, and the next one at one of its own.
func (c *crashes) crash(name, point string, again int) {
	if c.t.Failed() {
		return // one is enough to look at
	}
	w := c.world()
	switch status, said := w.spawn(name, false, failpoint.Env+"="+point); status {
	case -1:
		c.died.Add(1)
	case exitDone:
	default:
		c.t.Errorf("status %d: %s", status, said)
	}
	if status, said := w.spawn("", false, fmt.Sprintf("%s=*:%d", failpoint.Env, again)); status != -1 && status != exitDone {
		c.t.Errorf("recovery: status %d: %s", status, said)
	}
	w.aftermath(name)
	if c.t.Failed() {
		c.t.Errorf("%s: death at %s, then at point %d of the recovery:\n%s", name, point, again, w.log.text)
	}
}

// aftermath looks at a world in which an action was begun, and clears it away.
func (w *world) aftermath(name string) {
	pids := w.pids() // before anybody looks after them
	if err := w.boot(0); err != nil {
		w.t.Errorf("recovery: %v", err)
	}
	w.agree()
	w.down()
	if err := w.boot(0); err != nil {
		w.t.Errorf("second recovery: %v", err)
	}
	w.afterwards(name, pids)
	w.down()
}

// afterwards checks that a daemon tells the truth after an action, which may not have
// come to its end, can do it once more, and clears all away.
func (w *world) afterwards(name string, pids map[string]int) {
	a := actions[name]
	w.agree()
	w.intact(a, pids)
	if err := a.do(w); err != nil && (api.CodeOf(err) == api.CodeInternal || err.Error() == "") {
		w.t.Errorf("%s once more: %v", name, err)
	}
	w.agree()
	w.intact(a, pids)
	w.clear()
}

// intact checks what no crash may touch.
func (w *world) intact(a action, pids map[string]int) {
	w.t.Helper()
	ctx := context.Background()
	if v, err := w.svc.Get(ctx, 0, "z"); err != nil || v.State != api.VMRunning || v.PID != pids[v.ID] {
		w.t.Errorf("a VM that had nothing to do with it: %+v, %v", v, err)
	} else if a.beside {
		w.connected(v.ID)
	}
	v, err := w.svc.Get(ctx, 0, "a")
	if err != nil {
		v, err = w.svc.Get(ctx, 0, "b")
	}
	if err != nil && !a.ends {
		w.t.Errorf("the VM is lost: %v", err)
	}
	if a.spares && (v.State != api.VMRunning && v.State != api.VMPaused || v.PID != pids[v.ID]) {
		w.t.Errorf("a VM that was not to end: %+v", v)
	}
	images, err := w.images.List(ctx, 0)
	if err != nil || !slices.ContainsFunc(images, func(i image.Image) bool { return i.Name == "debian" }) {
		w.t.Errorf("images: %+v, %v", images, err)
	}
	for _, i := range images {
		if _, err := w.images.Disks(ctx, i.ID); err != nil {
			w.t.Error(err)
		}
	}
	kernels, err := w.kernels.List(ctx)
	if err != nil || len(kernels) == 0 {
		w.t.Errorf("kernels: %+v, %v", kernels, err)
	}
	for _, k := range kernels {
		if _, err := w.kernels.Boot(ctx, k.Name); err != nil {
			w.t.Error(err)
		}
	}
}

// connected checks that a VM that runs is on the bridge, and guarded there.
func (w *world) connected(id string) {
	w.t.Helper()
	held, err := w.ledger.Held(context.Background(), "vm/"+id+"/run")
	w.must(err)
	tap := ""
	for _, ref := range held {
		if ref.Kind == network.KindTap {
			tap = ref.Name
		}
	}
	held, err = w.ledger.Held(context.Background(), network.Owner)
	w.must(err)
	bridge := ""
	for _, ref := range held {
		if ref.Kind == network.KindBridge {
			bridge = ref.Name
		}
	}
	if link, err := exec.Command("ip", "-o", "link", "show", "dev", tap).CombinedOutput(); err != nil || !bytes.Contains(link, []byte(" master "+bridge+" ")) {
		w.t.Errorf("its tap is no port of %q: %s, %v", bridge, link, err)
	}
	if rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil || !bytes.Contains(rules, []byte(tap)) {
		w.t.Errorf("no rule tells of its tap %q: %v", tap, err)
	}
}

// removeAssets removes all images and kernels of a world without VMs.
func (w *world) removeAssets() {
	ctx := context.Background()
	images, err := w.images.List(ctx, 0)
	w.must(err)
	for _, i := range images {
		w.must(w.images.Remove(ctx, 0, i.Name))
	}
	unused, err := w.images.Unused(ctx) // what a pull that broke off has left for the next one
	w.must(err)
	for _, item := range unused {
		w.must(item.Remove(ctx))
	}
	kernels, err := w.kernels.List(ctx)
	w.must(err)
	for _, k := range kernels {
		w.must(w.kernels.Remove(ctx, k.Name))
	}
}
