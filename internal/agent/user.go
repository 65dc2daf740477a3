package agent

import (
	"bufio"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"banger/api"
)

// maxUserFile bounds what is read of /etc/passwd and /etc/group, which are the image's.
const maxUserFile = 4 << 20

// The guest's own files; tests put others in their place.
var passwdFile, groupFile = "/etc/passwd", "/etc/group"

// user is whom a command runs as.
type user struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// findUser resolves "name|uid[:group|gid]" in the guest's own files; empty is root.
func findUser(spec string) (user, error) {
	who, group, hasGroup := strings.Cut(spec, ":")
	if who == "" {
		who = "root"
	}
	u := user{name: who, home: "/"}
	found := false
	entries(passwdFile, 7, func(f []string) bool {
		uid, gid, ok := ids(f[2], f[3])
		if ok && (f[0] == who || f[2] == who) {
			u, found = user{name: f[0], home: f[5], shell: f[6], uid: uid, gid: gid}, true
		}
		return !found
	})
	if !found {
		switch uid, err := parseID(who); {
		case err == nil:
			u.uid = uid
		case who == "root":
			u.home = "/root"
		default:
			return user{}, api.Errorf(api.CodeInvalid, "exec: the guest has no user %q", who)
		}
	}
	if u.home == "" {
		u.home = "/"
	}
	if hasGroup {
		gid, err := findGroup(group)
		if err != nil {
			return user{}, err
		}
		u.gid = gid
		return u, nil
	}
	entries(groupFile, 4, func(f []string) bool {
		if gid, err := parseID(f[2]); err == nil && slices.Contains(strings.Split(f[3], ","), u.name) {
			u.groups = append(u.groups, gid)
		}
		return len(u.groups) < 1024
	})
	return u, nil
}

func findGroup(name string) (gid uint32, err error) {
	found := false
	entries(groupFile, 4, func(f []string) bool {
		if n, err := parseID(f[2]); err == nil && f[0] == name {
			gid, found = n, true
		}
		return !found
	})
	if found {
		return gid, nil
	}
	if n, err := parseID(name); err == nil {
		return n, nil
	}
	return 0, api.Errorf(api.CodeInvalid, "exec: the guest has no group %q", name)
}

func ids(uid, gid string) (u, g uint32, ok bool) {
	u, errU := parseID(uid)
	g, errG := parseID(gid)
	return u, g, errU == nil && errG == nil
}

// parseID reads a uid or gid. The highest number is none: setresuid(2) takes it for
// "leave as it is".
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == math.MaxUint32 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

// entries gives each line's fields to yield, where there are n of them, until it returns false.
func entries(path string, n int, yield func([]string) bool) {
	f, err := os.Open(path)
	if err != nil {
		return // an image need not have one
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, maxUserFile))
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), ":"); len(fields) == n && !yield(fields) {
			return
		}
	}
}
