package image

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"banger/api"
)

func TestRunConfig(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		want   api.ImageConfig
	}{
		"nothing": {config: `{"rootfs":{}}`},
		"null":    {config: `{"config":null}`},
		"all": {
			config: `{"architecture":"amd64","config":{"User":"app:www","WorkingDir":"/srv","Env":["A=1","PATH=/x","B="],"Entrypoint":["/e"],"Cmd":["a","b c"],
				"StopSignal":"SIGQUIT","ExposedPorts":{"80/tcp":{},"443":{},"53/udp":{},"8000-8002/tcp":{}},"Labels":{"l":"v"},
				"Healthcheck":{"Test":["CMD","/ok"],"Interval":5000000000,"Timeout":2000000000,"StartPeriod":1000000000,"Retries":2}}}`,
			want: api.ImageConfig{
				User: "app:www", WorkingDir: "/srv", Env: []string{"A=1", "PATH=/x", "B="}, Entrypoint: []string{"/e"}, Cmd: []string{"a", "b c"},
				StopSignal: "QUIT", ExposedPorts: []string{"53/udp", "80/tcp", "443/tcp", "8000-8002/tcp"}, Labels: map[string]string{"l": "v"},
				Healthcheck: &api.Healthcheck{Test: []string{"CMD", "/ok"}, Interval: 5, Timeout: 2, StartPeriod: 1, Retries: 2},
			},
		},
		"words as one string": {config: `{"config":{"Entrypoint":"/e","Cmd":""}}`, want: api.ImageConfig{Entrypoint: []string{"/e"}}},
		"defaults of a check, by the image's shell": {
			config: `{"config":{"Shell":["/bin/ash","-ec"],"Healthcheck":{"Test":["CMD-SHELL","test -e /ok"]}}}`,
			want:   api.ImageConfig{Healthcheck: &api.Healthcheck{Test: []string{"CMD", "/bin/ash", "-ec", "test -e /ok"}, Interval: 30, Timeout: 30, Retries: 3}},
		},
		"no check":      {config: `{"config":{"Healthcheck":{"Test":["NONE"]}}}`},
		"too often":     {config: `{"config":{"Healthcheck":{"Test":["CMD","x"],"Interval":1,"Timeout":-5,"Retries":-1}}}`, want: api.ImageConfig{Healthcheck: &api.Healthcheck{Test: []string{"CMD", "x"}, Interval: 0.1, Timeout: 30, Retries: 3}}},
		"what is amiss": {config: `{"config":{"Env":["=x","novalue","OK=1"],"ExposedPorts":{"x":{},"99999999/tcp":{},"80/foo":{}},"StopSignal":"$(reboot)"}}`, want: api.ImageConfig{Env: []string{"OK=1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Image{Config: c.config}).Run(); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestHostileConfig(t *testing.T) {
	layer := Blob{Digest: digest(nil), Size: 0}
	rootfs := fmt.Sprintf(`"rootfs":{"type":"layers","diff_ids":[%q]}`, digest([]byte("x")))
	for name, config := range map[string]string{
		"much environment": `{"config":{"Env":["A=` + strings.Repeat("x", 300<<10) + `"]},` + rootfs + `}`,
		"a NUL":            `{"config":{"Env":["A=` + `\u0000` + `"]},` + rootfs + `}`,
		"a NUL in a user":  `{"config":{"User":"root` + `\u0000` + `"},` + rootfs + `}`,
		"a list as a user": `{"config":{"User":["root"]},` + rootfs + `}`,
		"a number as Cmd":  `{"config":{"Cmd":7},` + rootfs + `}`,
		"other":            `[]`,
	} {
		if _, _, err := (Artifact{Config: []byte(config), Layers: []Blob{layer}}).chainIDs(); api.CodeOf(err) != api.CodeInvalid || !strings.HasPrefix(err.Error(), "image config: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUsable(t *testing.T) {
	for arch, usable := range map[string]bool{"": true, "amd64": true, "386": true, "arm64": false, "riscv64": false} {
		err := Image{Name: "x", Config: fmt.Sprintf(`{"architecture":%q,"os":"linux"}`, arch)}.Usable()
		if (err == nil) != usable || err != nil && (api.CodeOf(err) != api.CodeUnsupported || !strings.Contains(api.AsError(err).Hint, "--platform")) {
			t.Errorf("%q: %v", arch, err)
		}
	}
}
