package vm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"banger/api"
	"banger/internal/guest/wire"
)

// What may be a user's public key. The agent reads all keys in one request of 64
// KiB: the store keeps few of each user.
const (
	maxPublicKey = 1400 // bytes: RSA with 8192 bits
	minRSA       = 2048 // bits
)

var keyTypes = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA,
	ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
}

// newHostKey makes the ssh host key that a VM has for its life: a private key as
// OpenSSH writes it.
func newHostKey() (string, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make host key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return "", fmt.Errorf("make host key: %w", err)
	}
	return string(pem.EncodeToMemory(block)), nil
}

// parsePublicKey checks a line of authorized_keys (sshd(8)) that has neither
// options nor anything after it, and returns it without its comment.
func parsePublicKey(line string) (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", api.Errorf(api.CodeInvalid, "authorize public key: "+format, args...).
			WithHint("the content of one .pub file of ssh-keygen is needed: ed25519, ECDSA, or RSA from %d bits", minRSA)
	}
	if len(line) > 2*maxPublicKey {
		return bad("%d bytes are too many", len(line))
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil || len(bytes.TrimSpace(rest)) > 0:
		return bad("not one key")
	case len(options) > 0:
		return bad("options are not supported")
	case !slices.Contains(keyTypes, key.Type()):
		return bad("keys of type %q are not supported", key.Type())
	}
	if crypto, ok := key.(ssh.CryptoPublicKey); ok {
		if public, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); ok && public.N.BitLen() < minRSA {
			return bad("an RSA key of %d bits is too weak", public.N.BitLen())
		}
	}
	text := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	if len(text) > maxPublicKey {
		return bad("%d bytes are too many", len(text))
	}
	return text, nil
}

// sshSettings are what a VM's ssh server is given: the VM's host key, and the keys
// of the VM's owner and of root.
func (s *Service) sshSettings(ctx context.Context, rec Record) (*wire.SSH, error) {
	if rec.HostKey == "" {
		return nil, nil // a machine that helps with another's disks
	}
	keys, err := s.store.SSHKeys(ctx, rec.Owner)
	if err == nil && rec.Owner != 0 {
		var roots []string
		roots, err = s.store.SSHKeys(ctx, 0)
		keys = append(keys, roots...)
	}
	if err != nil {
		return nil, fmt.Errorf("read the ssh keys for VM %q: %w", rec.Name, err)
	}
	slices.Sort(keys)
	return &wire.SSH{HostKey: rec.HostKey, AuthorizedKeys: slices.Compact(keys)}, nil
}

// AuthorizeSSH lets the caller into their VMs, and root into all, with a public
// key, and this VM know it at once if it runs.
func (s *Service) AuthorizeSSH(ctx context.Context, caller uint32, ref, publicKey string) (api.SSHAccess, error) {
	o, err := s.find(caller, ref)
	if err != nil {
		return api.SSHAccess{}, err
	}
	key, err := parsePublicKey(publicKey)
	if err != nil {
		return api.SSHAccess{}, err
	}
	if err := s.store.AddSSHKey(ctx, caller, key); err != nil {
		return api.SSHAccess{}, err
	}
	rec, l := o.snapshot()
	settings, err := s.sshSettings(ctx, rec)
	if err != nil {
		return api.SSHAccess{}, err
	}
	host, err := ssh.ParsePrivateKey([]byte(rec.HostKey))
	if err != nil {
		return api.SSHAccess{}, fmt.Errorf("read the host key of VM %q: %w", rec.Name, err)
	}
	if l != nil {
		conn, err := l.channel(ctx)
		if err == nil {
			_, err = conn.Configure(ctx, wire.Configure{SSH: settings})
		}
		if err != nil {
			return api.SSHAccess{}, err
		}
	}
	return api.SSHAccess{
		VM: rec.ID, Name: rec.Name, AuthorizedKeys: settings.AuthorizedKeys,
		HostPublicKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(host.PublicKey()))),
	}, nil
}

// snapshot returns what the VM is, and what runs for it; nil while it is not running.
func (o *owner) snapshot() (Record, *live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state != api.VMRunning {
		return o.rec, nil
	}
	return o.rec, o.live
}

// sshAccess is a VM's ssh server, and who may use it.
type sshAccess struct {
	inert
	svc *Service
}

// settle gives a VM its host key.
func (sshAccess) settle(_ context.Context, rec Record) (Record, error) {
	var err error
	if rec.HostKey == "" {
		rec.HostKey, err = newHostKey()
	}
	return rec, err
}

func (a sshAccess) configure(ctx context.Context, rec Record, c *wire.Configure) error {
	var err error
	c.SSH, err = a.svc.sshSettings(ctx, rec)
	return err
}
