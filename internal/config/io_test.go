package config

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestIO(t *testing.T) {
	for text, want := range map[string]IO{
		"":                               {},
		"none":                           {},
		"read-bps=50M":                   {ReadBPS: 50 << 20},
		"write-iops=1000,write-bps=1.5K": {WriteBPS: 1536, WriteIOPS: 1000},
	} {
		var got IO
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"all": `"all" is not read-bps`, "read-bps": "read-bps takes a number", "read-bps=0": "more than 0", "read-iops=1K": "read-iops takes a number",
		"write-bps=-1M": "more than 0", "read-bps=1,read-bps=2": "twice", "read-bps=1M,": `"" is not`, "read-bps=99999999T": "more than 0",
	} {
		if err := new(IO).UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

// What is shown is what can be given.
func TestIOString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<45)
		want := IO{n.Draw(t, "read bps"), n.Draw(t, "write bps"), n.Draw(t, "read iops"), n.Draw(t, "write iops")}
		var got IO
		if err := got.UnmarshalText([]byte(want.String())); err != nil || got != want {
			t.Errorf("%+v is shown as %s, which is %+v, %v", want, want, got, err)
		}
	})
	if got := (IO{ReadBPS: 50 << 20, WriteBPS: 1000, ReadIOPS: 2048}).String(); got != "read-bps=50M,write-bps=1000,read-iops=2048" {
		t.Errorf("shown as %s", got)
	}
}
