package operation

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"banger/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newRegistry(t *testing.T) *Registry {
	t.Helper()
	r := NewRegistry()
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func wait(t *testing.T, r *Registry, id string) api.Operation {
	t.Helper()
	op, err := r.Wait(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func untilCancelled(ctx context.Context, _ api.Reporter) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestHowOperationsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		fn     func(context.Context, api.Reporter) error
		cancel bool
		status api.OperationStatus
		code   api.Code // "" for none
	}{
		"success":   {func(context.Context, api.Reporter) error { return nil }, false, api.OperationSucceeded, ""},
		"coded":     {func(context.Context, api.Reporter) error { return api.Errorf(api.CodeNoSpace, "full") }, false, api.OperationFailed, api.CodeNoSpace},
		"uncoded":   {func(context.Context, api.Reporter) error { return errors.New("odd") }, false, api.OperationFailed, api.CodeInternal},
		"panic":     {func(context.Context, api.Reporter) error { panic("ouch") }, false, api.OperationFailed, api.CodeInternal},
		"cancelled": {untilCancelled, true, api.OperationCancelled, api.CodeConflict},
		"cancelled too late": {func(ctx context.Context, _ api.Reporter) error { <-ctx.Done(); return nil }, true,
			api.OperationSucceeded, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			op := r.Start(7, "vm.create", "x", tc.fn)
			if op.Status != api.OperationRunning || op.Owner != 7 || op.Finished != nil {
				t.Errorf("started as %+v", op)
			}
			if tc.cancel && !r.Cancel(op.ID) {
				t.Error("cancel: not known")
			}
			op = wait(t, r, op.ID)
			if op.Status != tc.status || op.Finished == nil {
				t.Errorf("ended as %+v, want status %s", op, tc.status)
			}
			if (op.Error == nil) != (tc.code == "") || op.Error != nil && op.Error.Code != tc.code {
				t.Errorf("error %v, want code %q", op.Error, tc.code)
			}
		})
	}
}

func TestFollowersGetTheLatest(t *testing.T) {
	r := newRegistry(t)
	reported, goOn := make(chan struct{}), make(chan struct{})
	op := r.Start(0, "k", "t", func(_ context.Context, report api.Reporter) error {
		for i := range int64(100) { // nobody reads: must not block
			report(api.Progress{Current: i})
		}
		close(reported)
		<-goOn
		return nil
	})
	c, err := r.Follow(t.Context(), op.ID)
	if err != nil {
		t.Fatal(err)
	}
	<-reported
	if p := <-c; p.Current != 99 {
		t.Errorf("progress %d, want the latest, 99", p.Current)
	}
	gone, cancel := context.WithCancel(t.Context())
	left, _ := r.Follow(gone, op.ID)
	<-left
	cancel()
	if _, ok := <-left; ok {
		t.Error("progress after the follower left")
	}
	close(goOn)
	if _, ok := <-c; ok {
		t.Error("progress after the end")
	}
	if got, _ := r.Get(op.ID); got.Progress.Current != 99 {
		t.Errorf("kept progress %d, want 99", got.Progress.Current)
	}
	if _, err := r.Follow(t.Context(), "nope"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("follow an unknown one: %v", err)
	}
}

func TestFinishedOnesAreForgotten(t *testing.T) {
	r := newRegistry(t)
	now := time.Unix(1000, 0)
	r.now = func() time.Time { now = now.Add(time.Microsecond); return now }
	first := r.Start(0, "k", "t", untilCancelled)
	nothing := func(context.Context, api.Reporter) error { return nil }
	second := r.Start(0, "k", "t", nothing)
	wait(t, r, second.ID)
	for range keepMost {
		wait(t, r, r.Start(0, "k", "t", nothing).ID)
	}
	if _, ok := r.Get(second.ID); ok {
		t.Errorf("more than %d finished operations are kept", keepMost)
	}
	if n := len(r.List()); n != keepMost+1 {
		t.Errorf("%d operations, want %d finished and a running one", n, keepMost)
	}
	r.mu.Lock()
	now = now.Add(keepFor)
	r.mu.Unlock()
	if ops := r.List(); len(ops) != 1 || ops[0].ID != first.ID {
		t.Errorf("after %v there are %d operations, want the running one", keepFor, len(ops))
	}
}

func TestClose(t *testing.T) {
	r := NewRegistry()
	op := r.Start(0, "k", "t", untilCancelled)
	goOn := make(chan struct{})
	stubborn := r.Start(0, "k", "stubborn", func(context.Context, api.Reporter) error { <-goOn; return nil })
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Close(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("close with a stubborn operation: %v", err)
	}
	close(goOn)
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if op := wait(t, r, op.ID); op.Status != api.OperationCancelled {
		t.Errorf("ended as %s", op.Status)
	}
	if op := wait(t, r, stubborn.ID); op.Status != api.OperationSucceeded {
		t.Errorf("stubborn one ended as %s", op.Status)
	}
	late := r.Start(0, "k", "t", nil)
	if late.Status != api.OperationFailed || late.Error.Code != api.CodeUnavailable || !strings.Contains(late.Error.Message, "shutting down") {
		t.Errorf("started after close: %+v", late)
	}
}
