package bench

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"banger/api"
	"banger/internal/hosttest"
)

// BenchmarkRunTrue compares `vm run --rm -- true` with the same VMM, started by
// hand with the same kernel, disks and options, whose agent is asked to run true
// as soon as it answers. It prints the time line of a start beside it.
func BenchmarkRunTrue(b *testing.B) {
	h := hosttest.NewSeeded(b)
	h.Must(b, "vm", "run", "--name", "model", "--", "true")
	var model api.VM
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "model", "--json")), &model); err != nil {
		b.Fatal(err)
	}
	hand := newByHand(b, model.PID, filepath.Join(h.Paths.State, "cache"))
	h.Must(b, "vm", "stop", "model")

	compare(b, "run-true", 2*rounds+1, 1.10,
		func() time.Duration {
			return timed(b, h.Command(b.Context(), "vm", "run", "--rm", "--", "true"))
		},
		func() time.Duration {
			began := time.Now()
			m := hand.boot(b)
			began = began.Add(m.prepared)
			m.exec(b, "true")
			took := time.Since(began)
			m.kill()
			return took
		})

	h.Must(b, "vm", "start", "model")
	if err := json.Unmarshal([]byte(h.Must(b, "vm", "show", "model", "--json")), &model); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	h.Must(b, "vm", "exec", "model", "--", "true")
	for _, s := range append(model.Steps, api.Step{Name: "exec", Seconds: time.Since(began).Seconds()}) {
		fmt.Printf("run-true %s=%.1fms\n", s.Name, 1000*s.Seconds)
	}
}
