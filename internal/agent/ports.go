package agent

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/api"
)

const (
	// maxPorts bounds the answer, maxSockets what is read of a file of /proc/net.
	maxPorts   = 4096
	maxSockets = 16 << 20
)

// The states of sockets, from include/net/tcp_states.h. A UDP socket that is bound
// and not connected is in the state close.
const (
	tcpListen = "0A"
	udpClosed = "07"
)

// ports is GET /ports.
func ports(w http.ResponseWriter, _ *http.Request) { answer(w, listening("/proc")) }

// listening lists the sockets at which something listens, as the directory proc
// shows them.
func listening(proc string) []api.Port {
	list := []api.Port{}
	var inodes []string // of the list's sockets
	for _, f := range []struct{ name, protocol, state string }{
		{"tcp", "tcp", tcpListen}, {"tcp6", "tcp", tcpListen}, {"udp", "udp", udpClosed}, {"udp6", "udp", udpClosed},
	} {
		file, err := os.Open(filepath.Join(proc, "net", f.name))
		if err != nil {
			continue // a kernel without IPv6
		}
		sockets(file, f.state, func(at netip.AddrPort, inode string) bool {
			if len(list) < maxPorts {
				list = append(list, api.Port{Protocol: f.protocol, Address: at.Addr().String(), Port: at.Port()})
				inodes = append(inodes, inode)
			}
			return len(list) < maxPorts
		})
		_ = file.Close()
	}
	owners := socketOwners(proc, inodes)
	for i := range list {
		pid := owners[inodes[i]]
		if pid == 0 {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "comm")) // it may have ended
		list[i].PID, list[i].Process = pid, strings.TrimSpace(string(comm))
		if pid == os.Getpid() {
			list[i].Process = strings.TrimPrefix(roleServe, "@") // it was started by the name exe
		}
	}
	slices.SortFunc(list, func(a, b api.Port) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Address, b.Address), cmp.Compare(a.PID, b.PID))
	})
	return list
}

// sockets yields the sockets in a state, as proc_pid_net(5) shows them, until yield
// returns false.
func sockets(r io.Reader, state string, yield func(at netip.AddrPort, inode string) bool) {
	lines := bufio.NewScanner(io.LimitReader(r, maxSockets))
	lines.Scan() // the heading
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != state {
			continue
		}
		if at, ok := hexAddr(f[1]); ok && at.Port() != 0 && !yield(at, f[9]) {
			return
		}
	}
}

// hexAddr reads an address such as 0100007F:0016: words of 32 bits in the order of
// this machine, and a port.
func hexAddr(s string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(address)
	number, portErr := strconv.ParseUint(port, 16, 16)
	if err != nil || portErr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(number)), ok
}

// socketOwners finds, for each socket, the process with the lowest id that has it.
func socketOwners(proc string, inodes []string) map[string]int {
	owners := make(map[string]int, len(inodes))
	for _, inode := range inodes {
		owners[inode] = 0
	}
	if len(owners) == 0 {
		return owners
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return owners
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil {
				continue
			}
			inode, ok := strings.CutPrefix(strings.TrimSuffix(target, "]"), "socket:[")
			if !ok {
				continue
			}
			if least, wanted := owners[inode]; wanted && (least == 0 || pid < least) {
				owners[inode] = pid
			}
		}
	}
	return owners
}
