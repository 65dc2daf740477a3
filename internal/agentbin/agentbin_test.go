package agentbin

import (
	"bytes"
	"debug/elf"
	"testing"

	"banger/api"
)

// A build has an agent that the guest can run without an interpreter, or says
// how to get one.
func TestBinary(t *testing.T) {
	agent, err := Binary()
	if err != nil {
		if e := api.AsError(err); e.Code != api.CodeUnavailable || e.Hint == "" {
			t.Fatalf("error %v (code %s, hint %q), want unavailable and a hint", err, e.Code, e.Hint)
		}
		return
	}
	program, err := elf.NewFile(bytes.NewReader(agent))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the agent needs an interpreter, so it is not static")
		}
	}
}
