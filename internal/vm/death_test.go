package vm_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/api"
)

// TestDeathAtEachStatement has the daemon die before each statement of each request,
// and once more before each of the first ones of the recovery. The one after that
// says what is so, twice, and whatever it has can be deleted with nothing left.
func TestDeathAtEachStatement(t *testing.T) {
	ctx := context.Background()
	size := int64(128 << 20)
	for name, tc := range map[string]struct {
		before  func(*world) (api.Operation, error) // beside the creation
		request func(*world) (api.Operation, error)
	}{
		"create": {nil, func(w *world) (api.Operation, error) {
			_, op, err := w.svc.Create(ctx, 0, api.CreateVM{Name: "b", Start: true})
			return op, err
		}},
		"start":   {nil, func(w *world) (api.Operation, error) { return w.svc.Start(ctx, 0, "a") }},
		"stop":    {start, func(w *world) (api.Operation, error) { return w.svc.Stop(ctx, 0, "a", time.Minute) }},
		"kill":    {start, func(w *world) (api.Operation, error) { return w.svc.Kill(ctx, 0, "a") }},
		"delete":  {start, func(w *world) (api.Operation, error) { return w.svc.Delete(ctx, 0, "a", true) }},
		"restart": {start, func(w *world) (api.Operation, error) { return w.svc.Restart(ctx, 0, "a", time.Minute) }},
		"reset":   {start, func(w *world) (api.Operation, error) { return w.svc.Reset(ctx, 0, "a") }},
		"promote": {nil, func(w *world) (api.Operation, error) { return w.svc.Promote(ctx, 0, "a", "image") }},
		"set": {start, func(w *world) (api.Operation, error) {
			return w.svc.Set(ctx, 0, "a", api.SetVM{Name: new("b"), RootSize: &size, DiskSize: &size})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var survived atomic.Bool
			for first := 1; !survived.Load() && !t.Failed(); first += 16 { // together: the dead wait for what is busy
				var worlds sync.WaitGroup
				for passages := first; passages < first+16; passages++ {
					worlds.Go(func() {
						w := newWorld(t)
						if w.dieIn(tc.before, tc.request, passages) {
							survived.Store(true)
						}
						if t.Failed() {
							t.Errorf("death before statement %d:\n%s", passages, w.log.text)
						}
					})
				}
				worlds.Wait()
			}
		})
	}
}

func start(w *world) (api.Operation, error) { return w.svc.Start(context.Background(), 0, "a") }

// dieIn makes a request of a daemon that dies after so many of its statements, and
// reports whether it outlived the request.
func (w *world) dieIn(before, request func(*world) (api.Operation, error), passages int) (survived bool) {
	if err := w.boot(0); err != nil {
		w.t.Fatal(err)
	}
	w.create("a")
	if before != nil {
		if err := w.wait(before(w)); err != nil {
			w.t.Fatal(err)
		}
	}
	w.gate.left.Store(int64(passages) + 1)
	err := w.wait(request(w))
	select {
	case <-w.gate.dead:
	default:
		survived = true
		if err != nil {
			w.t.Errorf("the request: %v", err)
		}
	}
	if survived {
		w.gate.left.Store(1 << 62)
	}
	w.down()
	_ = w.boot(1 + passages%23) // which may be enough
	w.down()
	for range 2 {
		if err := w.boot(0); err != nil {
			w.t.Errorf("recovery: %v", err)
		}
		w.agree()
		w.down()
	}
	if err := w.boot(0); err != nil {
		w.t.Error(err)
	}
	w.clear()
	w.down()
	return survived
}
