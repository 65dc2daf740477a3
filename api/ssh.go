package api

// SSHKey is a user's public key, which lets its owner into the user's VMs.
type SSHKey struct {
	PublicKey string `json:"public_key" maxLength:"4096" doc:"One line as in a .pub file of ssh-keygen, without options."`
}

// SSHAccess is what a client needs to know to reach a VM by ssh.
type SSHAccess struct {
	VM             string   `json:"vm" doc:"Id of the VM."`
	Name           string   `json:"name" doc:"Name of the VM."`
	AuthorizedKeys []string `json:"authorized_keys" doc:"The public keys that the VM accepts: its owner's and root's."`
	HostPublicKey  string   `json:"host_public_key" doc:"Of the VM; the same for all of its life."`
}

// UpgradeStream is the protocol, in the header Upgrade (RFC 9110, 7.8), that GET
// /v1/vms/{vm}/ssh switches to, and GET /ssh and GET /tcp?port=N of the agent: bytes
// in both directions, each of which ends for itself.
const UpgradeStream = "banger-stream"
