package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/hosttest"
)

// seenWhole lists a tree in a VM with all that an image keeps of it.
const seenWhole = `cd "$0" && find . ! -type d -printf '%p %y %m %U:%G %n %s %Ts %l\n' | sort; find . -type d -printf '%p %m %U:%G %Ts\n' | sort`

// TestPromote makes an image of a VM's root and looks at it in another VM.
func TestPromote(t *testing.T) {
	h := hosttest.NewSeeded(t)
	// Most of the image is removed: what is left is enough to look, and soon read.
	h.Must(t, "vm", "run", "--name", "m", "--disk", "64M", "--", "sh", "-ec", `
		rm -rf /usr/share/* /usr/lib/python* /usr/lib/*/perl* /usr/lib/*/gconv /var/lib/dpkg /var/cache/*
		mkdir /srv/t; cd /srv/t; echo x >file; ln file again; chown 12:34 file; chmod 4711 file; touch -d @1000000000 file
		mkfifo pipe; mknod null c 1 3; ln -s /nowhere dangling; rm /etc/motd; mkdir /etc/motd; echo in >/etc/motd/x; rm -rf /etc/init.d; mkdir /etc/init.d; echo new >/etc/init.d/new; printf y >"$(printf 'new\nline')"; truncate -s 3M zeros; mkdir -m 500 locked
		echo work >/root/mine; mount -t tmpfs none /mnt; echo hidden >/mnt/file`)
	want := h.Must(t, "vm", "exec", "m", "--", "sh", "-c", seenWhole, "/srv/t")

	refused{args: []string{"vm", "promote", "m", "made"}, exit: exitConflict, error: "runs", hint: "vm stop m"}.check(t, h)
	h.Must(t, "vm", "stop", "m")
	refused{args: []string{"vm", "promote", "m", "No Name"}, exit: exitInvalid, error: "No Name"}.check(t, h)
	made := h.Banger(t, "vm", "promote", "m", "made")
	if made.Exit != 0 || !strings.HasPrefix(made.Stdout, "made ") || strings.ContainsAny(made.Stderr, "\r\x1b") {
		t.Fatalf("promote: exit status %d, %q, %q", made.Exit, made.Stdout, made.Stderr)
	}
	refused{args: []string{"vm", "promote", "m", "made"}, exit: exitExists, error: `"made"`, hint: "image rm made"}.check(t, h)

	// It is the VM's image with one more layer, which elsewhere comes to the same.
	var layers [2]int
	for i, name := range []string{"debian", "made"} {
		var img api.Image
		if err := json.Unmarshal([]byte(h.Must(t, "image", "show", "--json", name)), &img); err != nil {
			t.Fatal(err)
		}
		layers[i] = len(img.Layers)
	}
	if layers[1] != layers[0]+1 {
		t.Errorf("it has %d layers, the image of the VM %d", layers[1], layers[0])
	}
	if got := h.Must(t, "image", "history", "made"); !strings.Contains(got, "banger vm promote") {
		t.Errorf("its history:\n%s", got)
	}

	h.Must(t, "vm", "run", "--name", "n", "--image", "made", "--disk", "0", "--", "true")
	if got := h.Must(t, "vm", "exec", "n", "--", "sh", "-c", seenWhole, "/srv/t"); got != want {
		t.Errorf("in a VM of the image:\n%s\nin the VM that it was made of:\n%s", got, want)
	}
	if got := h.Must(t, "vm", "exec", "n", "--", "sh", "-c", "ls -A /usr/share /mnt /etc/motd /etc/init.d; ls /root /var/lib/dpkg 2>&1; hostname"); strings.Contains(got, "mine") ||
		!strings.HasPrefix(got, "/etc/init.d:\nnew\n\n/etc/motd:\nx\n\n/mnt:\n\n/usr/share:\n") || !strings.Contains(got, "No such file") || !strings.HasSuffix(got, "\nn") {
		t.Errorf("what was removed, mounted, or in the work disk: %q", got)
	}
	h.Must(t, "vm", "start", "m")
	if got := h.Must(t, "vm", "exec", "m", "--", "cat", "/root/mine"); got != "work" {
		t.Errorf("the VM that it was made of has %q", got)
	}
	h.Must(t, "vm", "delete", "--force", "m", "n")
	h.Must(t, "image", "rm", "made")
	nothingLeft(t, h)
}
