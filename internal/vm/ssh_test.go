package vm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"banger/api"
)

func publicLine(t testing.TB, key any) string {
	t.Helper()
	public, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

func TestHostKey(t *testing.T) {
	one, err := newHostKey()
	if err != nil {
		t.Fatal(err)
	}
	two, err := newHostKey()
	if err != nil || one == two {
		t.Errorf("the same key twice (%v)", err)
	}
	signer, err := ssh.ParsePrivateKey([]byte(one))
	if err != nil || signer.PublicKey().Type() != ssh.KeyAlgoED25519 || !strings.HasPrefix(one, "-----BEGIN OPENSSH PRIVATE KEY-----\n") {
		t.Errorf("not an ed25519 key in OpenSSH's format (%v)", err)
	}
}

func TestParsePublicKey(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ed := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkpOsxdSj2MGWVZLNpNxpyoTbRHFTkd7QEjNpWjR8aK"
	for _, good := range []string{ed, publicLine(t, curve.Public()), publicLine(t, strong.Public())} {
		for _, line := range []string{good, good + " me@host\n", "  " + good + "  \n\n"} {
			if got, err := parsePublicKey(line); err != nil || got != good {
				t.Errorf("%.40q: %.40q (%v)", line, got, err)
			}
		}
	}
	// A modulus of 1024 bits, RFC 4253, 6.6.
	modulus := append([]byte{0, 0x80}, make([]byte, 127)...)
	modulus[len(modulus)-1] = 1
	weak := "ssh-rsa " + base64.StdEncoding.EncodeToString(ssh.Marshal(struct {
		Type string
		E, N []byte
	}{"ssh-rsa", []byte{1, 0, 1}, modulus}))
	for name, bad := range map[string]string{
		"empty": "", "no key": "hello", "options": `command="true" ` + ed, "two": ed + "\n" + ed, "rest": ed + "\nx",
		"private": "-----BEGIN OPENSSH PRIVATE KEY-----", "long": ed + " " + strings.Repeat("x", 3*maxPublicKey), "truncated": ed[:40], "weak": weak,
	} {
		_, err := parsePublicKey(bad)
		if api.CodeOf(err) != api.CodeInvalid || api.AsError(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parsePublicKey(weak); err == nil || !strings.Contains(err.Error(), "1024 bits is too weak") {
		t.Errorf("a weak key: %v", err)
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkpOsxdSj2MGWVZLNpNxpyoTbRHFTkd7QEjNpWjR8aK x")
	f.Add(`no-pty ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkpOsxdSj2MGWVZLNpNxpyoTbRHFTkd7QEjNpWjR8aK`)
	f.Fuzz(func(t *testing.T, line string) {
		key, err := parsePublicKey(line)
		if err != nil {
			return
		}
		if again, err := parsePublicKey(key); err != nil || again != key || strings.ContainsAny(key, "\n\x00") {
			t.Errorf("%q became %q, which becomes %q (%v)", line, key, again, err)
		}
	})
}

// keyStore is a Store of which only the keys are asked for.
type keyStore struct {
	Store
	keys map[uint32][]string
}

func (k keyStore) SSHKeys(_ context.Context, owner uint32) ([]string, error) {
	return slices.Clone(k.keys[owner]), nil
}

// A VM takes its owner's keys and root's, each once, and nobody else's.
func TestSSHSettings(t *testing.T) {
	s := &Service{store: keyStore{keys: map[uint32][]string{0: {"root", "both"}, 1000: {"own", "both"}, 1001: {"other"}}}}
	for owner, want := range map[uint32][]string{0: {"both", "root"}, 1000: {"both", "own", "root"}, 1001: {"both", "other", "root"}, 1002: {"both", "root"}} {
		got, err := s.sshSettings(t.Context(), Record{Owner: owner, HostKey: "key"})
		if err != nil || got.HostKey != "key" || !slices.Equal(got.AuthorizedKeys, want) {
			t.Errorf("VM of %d: %+v (%v), want %q", owner, got, err, want)
		}
	}
}
