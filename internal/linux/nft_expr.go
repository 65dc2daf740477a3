package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The statements that rules are made of. Each is as nft(8) would compile its text
// (nft --debug=netlink shows that), with what a match presupposes, such as IPv4,
// included.

// nftReg is the register that everything but a concatenation goes through.
const nftReg = unix.NFT_REG_1

// Registers of the fields of a concatenation of a link, a MAC and an IPv4 address:
// of four bytes each, from the first one on.
const (
	nftRegLink = unix.NFT_REG32_00
	nftRegMAC  = nftRegLink + unix.IFNAMSIZ/4
	nftRegIPv4 = nftRegMAC + 2
)

var nftCounter = &expr.Counter{}

func cmp(op expr.CmpOp, data ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: nftReg, Data: data}
}

func payload(base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: nftReg, Base: base, Offset: offset, Len: length}
}

// isIPv4 comes before a match on the IPv4 header in the family inet.
func isIPv4(then ...expr.Any) []expr.Any {
	return append([]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: nftReg}, cmp(expr.CmpOpEq, unix.NFPROTO_IPV4)}, then...)
}

func link(key expr.MetaKey, word, name string, op expr.CmpOp) NftStatement {
	text := fmt.Sprintf("%s %q", word, name)
	if op == expr.CmpOpNeq {
		text = fmt.Sprintf("%s != %q", word, name)
	}
	return NftStatement{text, []expr.Any{&expr.Meta{Key: key, Register: nftReg}, cmp(op, nftName(name)...)}}
}

// NftFrom matches packets that came in by a link.
func NftFrom(name string) NftStatement {
	return link(expr.MetaKeyIIFNAME, "iifname", name, expr.CmpOpEq)
}

// NftNotFrom matches packets that came in by any other link.
func NftNotFrom(name string) NftStatement {
	return link(expr.MetaKeyIIFNAME, "iifname", name, expr.CmpOpNeq)
}

// NftTo matches packets that are going out by a link.
func NftTo(name string) NftStatement { return link(expr.MetaKeyOIFNAME, "oifname", name, expr.CmpOpEq) }

// NftNotTo matches packets that are going out by any other link.
func NftNotTo(name string) NftStatement {
	return link(expr.MetaKeyOIFNAME, "oifname", name, expr.CmpOpNeq)
}

// NftNotToAny matches packets that are going out by a link whose name does not begin
// with prefix.
func NftNotToAny(prefix string) NftStatement {
	return NftStatement{fmt.Sprintf("oifname != \"%s*\"", prefix), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: nftReg}, cmp(expr.CmpOpNeq, []byte(prefix)...),
	}}
}

// NftFromIn matches packets that came in by a link in a set.
func NftFromIn(set string) NftStatement {
	return NftStatement{"iifname @" + set, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: nftReg}, &expr.Lookup{SourceRegister: nftReg, SetName: set},
	}}
}

// Offsets in the IPv4 header; RFC 791.
const (
	ipv4Source = 12
	ipv4Dest   = 16
)

func inSet(word string, offset uint32, set string, invert bool) NftStatement {
	text := word + " @" + set
	if invert {
		text = word + " != @" + set
	}
	return NftStatement{text, isIPv4(payload(expr.PayloadBaseNetworkHeader, offset, 4),
		&expr.Lookup{SourceRegister: nftReg, SetName: set, Invert: invert})}
}

// NftSourceIn matches IPv4 packets whose source is in a set.
func NftSourceIn(set string) NftStatement { return inSet("ip saddr", ipv4Source, set, false) }

// NftSourceNotIn matches IPv4 packets whose source is not in a set.
func NftSourceNotIn(set string) NftStatement { return inSet("ip saddr", ipv4Source, set, true) }

// NftDestIn matches IPv4 packets whose destination is in a set.
func NftDestIn(set string) NftStatement { return inSet("ip daddr", ipv4Dest, set, false) }

// NftDest matches IPv4 packets to an address.
func NftDest(addr netip.Addr) NftStatement {
	return NftStatement{"ip daddr " + addr.String(), isIPv4(payload(expr.PayloadBaseNetworkHeader, ipv4Dest, 4),
		cmp(expr.CmpOpEq, addr.AsSlice()...))}
}

// NftNotIPv4 matches everything but IPv4.
func NftNotIPv4() NftStatement {
	return NftStatement{"meta nfproto != ipv4", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: nftReg}, cmp(expr.CmpOpNeq, unix.NFPROTO_IPV4),
	}}
}

// NftEstablished matches packets of connections that are known, and what belongs to
// them, such as ICMP errors.
func NftEstablished() NftStatement {
	mask := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return NftStatement{"ct state established,related", []expr.Any{
		&expr.Ct{Register: nftReg, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: nftReg, DestRegister: nftReg, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		cmp(expr.CmpOpNeq, 0, 0, 0, 0),
	}}
}

func ofProtocol(protocol byte, then ...expr.Any) []expr.Any {
	return append([]expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: nftReg}, cmp(expr.CmpOpEq, protocol)}, then...)
}

func toPort(word string, protocol byte, port uint16) NftStatement {
	return NftStatement{fmt.Sprintf("%s dport %d", word, port), ofProtocol(protocol,
		payload(expr.PayloadBaseTransportHeader, 2, 2), cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, port)...))}
}

// NftUDP matches UDP packets to a port.
func NftUDP(port uint16) NftStatement { return toPort("udp", unix.IPPROTO_UDP, port) }

// NftTCP matches TCP packets to a port.
func NftTCP(port uint16) NftStatement { return toPort("tcp", unix.IPPROTO_TCP, port) }

// NftPing matches ICMP echo requests; RFC 792.
func NftPing() NftStatement {
	return NftStatement{"icmp type echo-request", ofProtocol(unix.IPPROTO_ICMP,
		payload(expr.PayloadBaseTransportHeader, 0, 1), cmp(expr.CmpOpEq, 8))}
}

// NftClampMSS has the ends of a new TCP connection agree on segments that fit the
// route, whatever becomes of the ICMP errors that would tell them.
func NftClampMSS() NftStatement {
	const flags, syn, rst, option, mss = 13, 0x02, 0x04, 2, 2
	return NftStatement{"tcp flags syn / syn,rst tcp option maxseg size set rt mtu", ofProtocol(unix.IPPROTO_TCP,
		payload(expr.PayloadBaseTransportHeader, flags, 1),
		&expr.Bitwise{SourceRegister: nftReg, DestRegister: nftReg, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		cmp(expr.CmpOpEq, syn),
		&expr.Rt{Register: nftReg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: nftReg, DestRegister: nftReg, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: nftReg, Type: option, Offset: mss, Len: 2, Op: expr.ExthdrOpTcpopt},
	)}
}

// NftIsGuestIPv4 matches frames with IPv4 whose link, source MAC and source address
// are together in a set. A frame with a VLAN tag is none. For the family netdev.
func NftIsGuestIPv4(set string) NftStatement {
	return NftStatement{"iifname . ether saddr . ip saddr @" + set, append(ofEtherType(unix.ETH_P_IP),
		guest(set, expr.PayloadBaseLLHeader, 6, ipv4Source)...)}
}

// NftIsGuestARP matches frames with ARP whose link, source MAC and sender are
// together in a set, by the frame's word and by that of ARP; RFC 826.
func NftIsGuestARP(set string) NftStatement {
	exprs := append(ofEtherType(unix.ETH_P_ARP), guest(set, expr.PayloadBaseLLHeader, 6, 14)...)
	return NftStatement{
		"iifname . ether saddr . arp saddr ip @" + set + " iifname . arp saddr ether . arp saddr ip @" + set,
		append(exprs, guest(set, expr.PayloadBaseNetworkHeader, 8, 14)...),
	}
}

func ofEtherType(protocol uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: nftReg}, cmp(expr.CmpOpEq, binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER)...),
		payload(expr.PayloadBaseLLHeader, 12, 2), cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, protocol)...),
	}
}

// guest looks up the link, the MAC at an offset and the IPv4 address at another.
func guest(set string, macBase expr.PayloadBase, mac, ip uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: nftRegLink},
		&expr.Payload{DestRegister: nftRegMAC, Base: macBase, Offset: mac, Len: 6},
		&expr.Payload{DestRegister: nftRegIPv4, Base: expr.PayloadBaseNetworkHeader, Offset: ip, Len: 4},
		&expr.Lookup{SourceRegister: nftRegLink, SetName: set},
	}
}

// NftCount counts packets and bytes.
func NftCount() NftStatement { return NftStatement{"counter", []expr.Any{nftCounter}} }

// NftAccept lets a packet pass.
func NftAccept() NftStatement {
	return NftStatement{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

// NftDrop drops a packet.
func NftDrop() NftStatement {
	return NftStatement{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}
}

// NftGoto goes on in another chain, for good.
func NftGoto(chain string) NftStatement {
	return NftStatement{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

// NftMasquerade gives a connection the source address of the link that it leaves by.
func NftMasquerade() NftStatement { return NftStatement{"masquerade", []expr.Any{&expr.Masq{}}} }
