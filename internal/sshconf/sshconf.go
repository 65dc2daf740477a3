// Package sshconf lets the user's own OpenSSH into VMs without touching the user's
// ~/.ssh: it keeps a key pair and the host keys of one installation's VMs in a
// directory of the user's, and writes what ssh(1) has to be told, as arguments or
// as a stanza of ssh_config(5). It runs in the command line, as the user.
package sshconf

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"

	"banger/api"
)

const (
	keyFile  = "id_ed25519"
	hostsDir = "known_hosts.d"
	// A file of a VM that is not known is left alone for so long: the VM may have
	// been made after the VMs were listed.
	pruneAge = time.Hour
)

// Dir is the directory of one user and one installation.
type Dir struct {
	path   string
	public string
}

// Open opens the directory and makes it, and the key pair in it, where they are
// missing. Several processes may do so at once and get the same key.
func Open(path string) (*Dir, error) {
	if strings.ContainsAny(path, "\n\r\x00") || strings.Contains(path, "${") || !filepath.IsAbs(path) {
		return nil, api.Errorf(api.CodeUnsupported, "keep ssh keys in %q: ssh cannot be told such a path", path).
			WithHint("set XDG_DATA_HOME to another directory")
	}
	if err := os.MkdirAll(filepath.Join(path, hostsDir), 0o700); err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "make directory for ssh keys: %w", err).WithHint("set XDG_DATA_HOME to a directory of yours")
	}
	name := filepath.Join(path, keyFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(name); err == nil {
			text, err = os.ReadFile(name)
		}
	}
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "read ssh key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read ssh key %s: %w", name, err).WithHint("remove the file: a new key is made then")
	}
	return &Dir{path: path, public: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))}, nil
}

// makeKey makes a private key at name, complete or not at all; one that appeared
// there meanwhile stays.
func makeKey(name string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "banger")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".key-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(pem.EncodeToMemory(block))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), name); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// PublicKey is the public half of the key pair, a line of authorized_keys.
func (d *Dir) PublicKey() string { return d.public }

func (d *Dir) hosts(id string) string { return filepath.Join(d.path, hostsDir, id) }

// Trust makes hostKey, a public key, the only one that the VM called id may have.
// It reports whether that is news.
func (d *Dir) Trust(id, hostKey string) (news bool, err error) {
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(hostKey))
	if err != nil || len(rest) > 0 || !plain(id) {
		return false, api.Errorf(api.CodeInternal, "trust host key of VM %q: not understood", id)
	}
	line := id + " " + string(ssh.MarshalAuthorizedKey(key))
	if old, err := os.ReadFile(d.hosts(id)); err == nil && string(old) == line {
		return false, nil
	}
	if err := renameio.WriteFile(d.hosts(id), []byte(line), 0o600); err != nil {
		return false, api.Errorf(api.CodeUnavailable, "keep host key: %w", err)
	}
	return true, nil
}

// Forget removes the host keys of all VMs but those with the ids.
func (d *Dir) Forget(but []string) error {
	entries, err := os.ReadDir(filepath.Join(d.path, hostsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || slices.Contains(but, e.Name()) || time.Since(info.ModTime()) < pruneAge {
			continue
		}
		errs = append(errs, os.Remove(d.hosts(e.Name())))
	}
	return errors.Join(errs...)
}

// plain says that nobody, ssh or a shell, reads more than itself into a word.
func plain(word string) bool {
	return word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && word[0] != '-'
}

// Target is a VM as ssh is to reach it.
type Target struct {
	ID, Name string
	User     string
	// Proxy is the command that connects its standard input and output with the
	// VM's ssh server, with Env, as NAME=value, added to its environment. The VM's
	// id is appended.
	Proxy, Env []string
}

// Host is the name under which ssh knows the VM.
func (t Target) Host() string { return t.Name + ".vm" }

// options are what ssh has to be told, as keywords of ssh_config(5).
func (d *Dir) options(t Target) ([][2]string, error) {
	if !plain(t.ID) || !plain(t.Name) {
		return nil, api.Errorf(api.CodeInternal, "ssh to VM %q: not a name for ssh", t.Name)
	}
	if t.User == "" || strings.ContainsAny(t.User, "\n\r\x00 \"'\\%${}") || t.User[0] == '-' {
		return nil, api.Errorf(api.CodeInvalid, "ssh to VM %q: %q is not the name of a user", t.Name, t.User)
	}
	proxy := []string{"env"}
	for _, word := range slices.Concat(t.Env, t.Proxy) {
		if strings.ContainsAny(word, "\n\r\x00") {
			return nil, api.Errorf(api.CodeUnsupported, "ssh to VM %q: a line break in %q", t.Name, word)
		}
		proxy = append(proxy, strings.ReplaceAll(shellQuote(word), "%", "%%"))
	}
	return [][2]string{
		{"HostName", t.ID},
		{"HostKeyAlias", t.ID},
		{"User", t.User},
		{"IdentityFile", quote(filepath.Join(d.path, keyFile))},
		{"IdentitiesOnly", "yes"},
		{"IdentityAgent", "none"},
		{"PreferredAuthentications", "publickey"},
		{"UserKnownHostsFile", quote(d.hosts(t.ID))},
		{"GlobalKnownHostsFile", "/dev/null"},
		{"StrictHostKeyChecking", "yes"},
		{"UpdateHostKeys", "no"},
		{"CheckHostIP", "no"},
		{"CanonicalizeHostname", "no"},
		{"ControlMaster", "no"},
		{"ControlPath", "none"},
		{"ProxyUseFdpass", "no"},
		{"ProxyCommand", strings.Join(proxy, " ") + " %h"},
	}, nil
}

// Args are the arguments of ssh(1) that come before those of its user; Host
// follows them. What they say comes before what the user's own files say.
func (d *Dir) Args(t Target) ([]string, error) {
	options, err := d.options(t)
	var args []string
	for _, o := range options {
		args = append(args, "-o", o[0]+"="+o[1])
	}
	return args, err
}

// Stanza is a part of an ssh_config(5) file.
func (d *Dir) Stanza(t Target) (string, error) {
	options, err := d.options(t)
	if err != nil {
		return "", err
	}
	text := "Host " + t.Host() + "\n"
	for _, o := range options {
		text += fmt.Sprintf("  %s %s\n", o[0], o[1])
	}
	return text, nil
}

// quote makes a path one word of ssh_config(5), with nothing in it expanded.
func quote(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(path) + `"`
}

// shellQuote makes a text one word of any shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
