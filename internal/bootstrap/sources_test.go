package bootstrap

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/api"
)

var (
	bookworm = map[string]string{"ID": "debian", "VERSION_ID": "12", "VERSION_CODENAME": "bookworm"}
	trixie   = map[string]string{"ID": "debian", "VERSION_ID": "13", "VERSION_CODENAME": "trixie"}
	forky    = map[string]string{"ID": "debian", "VERSION_CODENAME": "forky"}
	noble    = map[string]string{"ID": "ubuntu", "VERSION_ID": "24.04", "VERSION_CODENAME": "noble"}
)

func TestSourcesOfHosts(t *testing.T) {
	debian := "Types: deb\nURIs: http://mirror.example.org/debian/\nSuites: "
	for _, c := range []struct {
		dir  string
		host map[string]string
		want []string
	}{
		{"debian12", bookworm, []string{
			debian + "bookworm\nComponents: main\n",
			"Types: deb\nURIs: http://security.example.org/debian-security\nSuites: bookworm-security\nComponents: main\n",
			debian + "bookworm-updates\nComponents: main\n",
		}},
		{"debian13", trixie, []string{
			debian + "trixie trixie-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
			"Types: deb\nURIs: http://security.example.org/debian-security/\nSuites: trixie-security\nComponents: main\n" +
				"Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY865UxYJKwYBBAHaRw8BAQdAd7Z0srwuhlB6JKFkcf4HU4SSS\n -----END PGP PUBLIC KEY BLOCK-----\n",
		}},
		{"ubuntu2404", noble, []string{
			"Types: deb\nURIs: http://archive.example.org/ubuntu/\nSuites: noble noble-updates\nComponents: main\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n",
			"Types: deb\nURIs: http://security.example.org/ubuntu/\nSuites: noble-security\nComponents: main\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n",
		}},
	} {
		suite, got, err := hostSources(filepath.Join("testdata", c.dir), c.host)
		if err != nil || suite != c.host["VERSION_CODENAME"] || strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: %s, %v:\n%s\nwant\n%s", c.dir, suite, err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
	if suite, got, err := hostSources("testdata/debian12", trixie); suite != "" || len(got) != 0 || err != nil {
		t.Errorf("of another release: %s, %q, %v", suite, got, err)
	}
}

func TestNamesOfSuites(t *testing.T) {
	for _, c := range []struct {
		name, list string
		host       map[string]string
		suite      string
		suites     []string // of the stanzas
	}{
		{"stable", "deb http://example.org/d stable main\ndeb http://example.org/d stable-updates main\ndeb http://example.org/s stable-security main", trixie, "stable",
			[]string{"stable", "stable-updates", "stable-security"}},
		{"old security", "deb http://example.org/d oldstable main\ndeb http://example.org/s oldstable/updates main", bookworm, "oldstable", []string{"oldstable", "oldstable/updates"}},
		{"testing", "deb http://example.org/d testing main\ndeb http://example.org/s testing-security main", forky, "testing", []string{"testing", "testing-security"}},
		{"sid", "deb http://example.org/d sid main", forky, "sid", []string{"sid"}},
		{"the codename first", "deb http://example.org/d stable main\ndeb http://example.org/d trixie main\ndeb http://example.org/d testing main", trixie, "trixie", []string{"trixie"}},
		{"testing beside a release", "deb http://example.org/d testing main", trixie, "", nil},
		{"updates alone", "deb http://example.org/d trixie-updates main", trixie, "", nil},
		{"no main", "deb http://example.org/d trixie contrib", trixie, "", nil},
		{"source packages", "deb-src http://example.org/d trixie main", trixie, "", nil},
		{"a disc", "deb cdrom:[Debian 13]/ trixie main", trixie, "", nil},
		{"stable on Ubuntu", "deb http://example.org/d stable main", noble, "", nil},
		{"tabs and options", "deb\t[ arch=amd64,i386 trusted=yes check-valid-until=no lang=en ]\thttp://example.org/d\ttrixie\tmain\tcontrib # all", trixie, "trixie", []string{"trixie"}},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(c.list), 0o600); err != nil {
			t.Fatal(err)
		}
		suite, stanzas, err := hostSources(dir, c.host)
		var suites []string
		for _, s := range stanzas {
			suites = append(suites, deb822(s)[0]["suites"])
			if c.name == "tabs and options" && !strings.HasSuffix(s, "Trusted: yes\nCheck-Valid-Until: no\nArchitectures: amd64 i386\n") {
				t.Errorf("%s: got %q", c.name, s)
			}
		}
		if err != nil || suite != c.suite || strings.Join(suites, ",") != strings.Join(c.suites, ",") {
			t.Errorf("%s: %q, %q, %v", c.name, suite, suites, err)
		}
	}
}

func TestCodesOfFailures(t *testing.T) {
	ended := errors.New("mmdebstrap: exit status 1")
	for name, c := range map[string]struct {
		said string
		err  error
		code api.Code
		says string
	}{
		"offline": {"Get:1 ...\nErr:1 http://mirror.example.org/debian bookworm InRelease\n  Temporary failure resolving 'mirror.example.org'\nE: apt-get update failed\nE: run_chroot failed", ended,
			api.CodeUnavailable, "apt-get update failed"},
		"disk full": {"dpkg: error processing archive /x.deb (--unpack):\n cannot copy extracted data for './usr/bin/x' to '/usr/bin/x.dpkg-new': failed to write (No space left on device)\nE: setup failed", ended,
			api.CodeNoSpace, "no space left on device"},
		"apt sees it before": {"E: You don't have enough free space in /tmp/mmdebstrap.x/var/cache/apt/archives/.", ended, api.CodeNoSpace, "enough free space"},
		"our own file":       {"", &os.PathError{Op: "write", Path: "/tmp/x", Err: syscall.ENOSPC}, api.CodeNoSpace, "/tmp/x"},
		"silent":             {"", ended, api.CodeUnavailable, "exit status 1"},
	} {
		var tail tailWriter
		io.WriteString(&tail, strings.Repeat("noise\n", tailSize))
		io.WriteString(&tail, c.said)
		err := failure(t.Context(), "bookworm", tail.lines(), c.err)
		if api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %s, %v", name, api.CodeOf(err), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := failure(ctx, "bookworm", nil, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := bootstrap(t.Context(), bookworm, nil, io.Discard, io.Discard); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("without mmdebstrap: got %v", err)
	}
	if err := Run(t.Context(), "plan9", nil, io.Discard, io.Discard); api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("an unknown distribution: got %v", err)
	}
	host := Host()
	if host == "" {
		return // which Run refuses before it looks at the packages
	}
	for _, bad := range []string{"", "-o", "a b", "?essential", "x", "../x", "Upper", "a\nb"} {
		if err := Run(t.Context(), host, []string{"tree", bad}, io.Discard, io.Discard); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("package %q: got %v", bad, err)
		}
	}
}
